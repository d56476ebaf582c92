from __future__ import annotations

import math

import pytest
import torch

from megatron_dsmath.parallel.rotary import rotary_table, rotate

THETA = 10000.0


def their_rotation(states: torch.Tensor, theta: float) -> torch.Tensor:
    """[sequence, batch, heads, channels], rotated by transformers."""
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding, apply_rotary_pos_emb

    length, batch, heads, channels = states.shape
    config = LlamaConfig(
        hidden_size=heads * channels,
        num_attention_heads=heads,
        max_position_embeddings=length,
        rope_parameters={"rope_type": "default", "rope_theta": theta},
    )
    their_order = states.permute(1, 2, 0, 3)
    cosines, sines = LlamaRotaryEmbedding(config)(their_order, torch.arange(length).expand(batch, length))
    rotated, _ = apply_rotary_pos_emb(their_order, their_order, cosines, sines)
    result: torch.Tensor = rotated.permute(2, 0, 1, 3)
    return result


def states_of(dtype: torch.dtype, length: int = 300, channels: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(length, 2, 3, channels, generator=generator).to(dtype)


@pytest.mark.parametrize("theta", [10000.0, 500000.0])
def test_fp32_rotates_like_transformers(theta: float) -> None:
    states = states_of(torch.float32)
    # An angle of 300 radians in fp32 has an error of 300 x 2^-24 = 2e-5, and the frequencies are rounded differently.
    torch.testing.assert_close(rotate(states, theta), their_rotation(states, theta), atol=1e-4, rtol=0)


def test_bf16_rotates_like_transformers() -> None:
    states = states_of(torch.bfloat16)
    # Both use cosines rounded to bf16; transformers rounds each product, we round only the sum: 2 half-units below 8.
    torch.testing.assert_close(rotate(states, THETA), their_rotation(states, THETA), atol=2 * 4 * 2**-8, rtol=0)


def test_the_gradient_is_that_of_the_rotation() -> None:
    states = states_of(torch.float64, length=5, channels=6).requires_grad_()
    assert torch.autograd.gradcheck(lambda tensor: rotate(tensor, THETA), states)


def test_angles_follow_the_definition() -> None:
    """Position p rotates channel pair i by p x theta^(-2i / channels) (RoFormer, section 3.2.2)."""
    cosines, sines = rotary_table(12, 8, THETA, torch.device("cpu"), torch.float32)
    for position in (0, 1, 11):
        for pair in range(4):
            angle = position * THETA ** (-2 * pair / 8)
            assert cosines[position, 0, 0, pair].item() == pytest.approx(math.cos(angle), abs=1e-6)  # fp32
            assert sines[position, 0, 0, pair].item() == pytest.approx(math.sin(angle), abs=1e-6)


def test_given_positions_rotate_as_in_a_longer_sequence() -> None:
    states = states_of(torch.float32, length=7)
    positions = torch.tensor([[0, 0], [1, 1], [0, 2], [1, 3], [2, 4], [0, 5], [0, 6]])
    rotated = rotate(states, THETA, positions)
    for row in range(2):
        for index, position in enumerate(positions[:, row].tolist()):
            moved = torch.zeros_like(states)
            moved[position, row] = states[index, row]
            assert torch.equal(rotate(moved, THETA)[position, row], rotated[index, row])


def test_the_gradient_is_that_of_the_rotation_by_positions() -> None:
    states = states_of(torch.float64, length=5, channels=6).requires_grad_()
    positions = torch.tensor([[0, 0], [0, 1], [1, 2], [2, 0], [0, 1]])
    assert torch.autograd.gradcheck(lambda tensor: rotate(tensor, THETA, positions), states)


def test_the_product_of_two_rotated_vectors_depends_only_on_their_distance() -> None:
    query, key = torch.randn(2, 1, 1, 1, 16, generator=torch.Generator().manual_seed(2))
    turned_query, turned_key = (rotate(vector.expand(40, 1, 1, 16).contiguous(), THETA) for vector in (query, key))
    products = (turned_query[7:] * turned_key[:-7]).sum(-1).flatten()
    torch.testing.assert_close(products, products[:1].expand(33), atol=1e-4, rtol=0)  # fp32 angles, as above


def test_a_view_of_a_larger_matrix_rotates_like_a_copy() -> None:
    """Queries and keys are views of one fused product."""
    fused = states_of(torch.float32, channels=48)
    view = fused[..., 16:32]
    assert torch.equal(rotate(view, THETA), rotate(view.contiguous(), THETA))
