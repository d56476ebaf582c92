from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from megatron_dsmath.parallel import attention
from megatron_dsmath.parallel.attention import document_attention, document_bounds, document_positions

SEQUENCE, BATCH, CHANNELS = 8, 2, 8
STARTS = [np.array([0, 1, 6]), np.array([0])]
BOUNDS = [0, 1, 6, 8, 16]
GROUPS = [(6, 6), (6, 2), (6, 1)]


def draw(heads: int, groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(SEQUENCE, BATCH, count, CHANNELS, generator=generator).requires_grad_()
        for count in (heads, groups, groups)
    )
    return query, key, value


def masked_matrix(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(q k / sqrt(channels)) v with a mask that hides later tokens and other documents."""
    repeats = query.size(2) // key.size(2)
    key, value = (tensor.repeat_interleave(repeats, dim=2) for tensor in (key, value))
    scores = torch.einsum("sbhc,tbhc->bhst", query, key) / CHANNELS**0.5
    document = torch.tensor([[0, 1, 1, 1, 1, 1, 2, 2], [0] * 8])
    hidden = (document[:, :, None] != document[:, None]) | torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden[:, None], -torch.inf).softmax(-1)
    return torch.einsum("bhst,tbhc->sbhc", weights, value)


def test_bounds_count_through_the_rows_and_end_with_the_last_token() -> None:
    bounds = document_bounds(STARTS, SEQUENCE)
    assert bounds.tolist() == BOUNDS
    assert bounds.dtype == np.int32  # flash kernels accept only this type


def test_a_document_with_only_a_target_has_no_bounds() -> None:
    assert document_bounds([np.array([0, 3, 8]), np.array([0, 8])], SEQUENCE).tolist() == [0, 3, 8, 16]


def test_positions_start_from_zero_in_every_document() -> None:
    positions = document_positions(torch.tensor(BOUNDS, dtype=torch.int32), SEQUENCE, BATCH)
    assert positions.t().tolist() == [[0, 0, 1, 2, 3, 4, 0, 1], [0, 1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize(("heads", "groups"), GROUPS)
def test_values_and_gradients_are_those_of_the_masked_matrix(heads: int, groups: int) -> None:
    states, bounds = draw(heads, groups), torch.tensor(BOUNDS, dtype=torch.int32)
    slope = torch.randn(SEQUENCE, BATCH, heads, CHANNELS, generator=torch.Generator().manual_seed(1))
    found = [
        [output, *torch.autograd.grad(output, states, slope)]
        for output in (document_attention(*states, bounds), masked_matrix(*states))
    ]
    for our, their in zip(*found, strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=0)  # fp32, values of order 1


def test_no_document_has_a_matrix_of_its_length_squared() -> None:
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # raises where only the kernel with the matrix is available
        document_attention(*draw(6, 2), torch.tensor(BOUNDS, dtype=torch.int32))


def reference_varlen_attn(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    query_bounds: torch.Tensor,
    key_bounds: torch.Tensor,
    longest_query: int,
    longest_key: int,
    *,
    window_size: tuple[int, int],
    enable_gqa: bool = False,
) -> torch.Tensor:
    """What `varlen_attn` computes according to its documentation, with the same limits on its arguments."""
    assert query_bounds is key_bounds and query_bounds.dtype == torch.int32
    assert enable_gqa or query.size(1) == key.size(1)
    assert window_size == (-1, 0)
    outputs, bounds = [], query_bounds.tolist()
    assert longest_query == longest_key >= max(end - start for start, end in pairwise(bounds))
    for start, end in pairwise(bounds):
        repeats = query.size(1) // key.size(1)
        keys, values = (tensor[start:end].repeat_interleave(repeats, 1) for tensor in (key, value))
        scores = torch.einsum("shc,thc->hst", query[start:end], keys) / query.size(2) ** 0.5
        scores = scores.masked_fill(torch.ones_like(scores[0], dtype=torch.bool).triu(1), -torch.inf)
        outputs.append(torch.einsum("hst,thc->shc", scores.softmax(-1), values))
    return torch.cat(outputs)


@pytest.mark.parametrize(("heads", "groups"), GROUPS)
def test_the_flash_kernel_gets_every_document_of_every_row(
    heads: int, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = draw(heads, groups)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", reference_varlen_attn)
    monkeypatch.setattr(attention, "can_use_flash", lambda query, key: True)
    ours = document_attention(*states, torch.tensor(BOUNDS, dtype=torch.int32))
    torch.testing.assert_close(ours, masked_matrix(*states), atol=1e-5, rtol=0)  # as above


@pytest.mark.parametrize(("heads", "groups"), GROUPS)
def test_torch_accepts_the_call_forward_and_backward(heads: int, groups: int) -> None:
    query, key, value = (
        torch.empty(16, count, CHANNELS, dtype=torch.bfloat16, device="meta", requires_grad=True)
        for count in (heads, groups, groups)
    )
    bounds = torch.empty(5, dtype=torch.int32, device="meta")
    output = attention.flash_attention(query, key, value, bounds, longest=8)
    assert output.shape == query.shape
    gradients = torch.autograd.grad(output, [query, key, value], torch.empty_like(output))
    assert [gradient.shape for gradient in gradients] == [query.shape, key.shape, value.shape]


@pytest.mark.parametrize(
    ("device", "dtype", "channels", "taken"),
    [
        ("cuda", torch.bfloat16, 128, True),
        ("cuda", torch.bfloat16, 256, True),
        ("cuda", torch.float32, 128, False),
        ("cuda", torch.bfloat16, 264, False),  # the kernel supports multiples of 8 up to 256
        ("cuda", torch.bfloat16, 12, False),
        ("cpu", torch.bfloat16, 128, False),
    ],
)
def test_the_flash_kernel_is_used_only_where_it_is_supported(
    device: str, dtype: torch.dtype, channels: int, taken: bool
) -> None:
    with FakeTensorMode():  # tensors of a GPU without a GPU: shapes, types and devices only
        query, key = torch.empty(16, 6, channels, dtype=dtype, device=device), torch.empty(16, 2, channels)
        assert attention.can_use_flash(query, key) is taken


def test_an_older_torch_gets_no_grouped_queries(monkeypatch: pytest.MonkeyPatch) -> None:
    def varlen_attn_before_2_12(query: torch.Tensor, key: torch.Tensor) -> None:
        pass

    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", varlen_attn_before_2_12)
    with FakeTensorMode():
        query, key = (torch.empty(16, count, 64, dtype=torch.bfloat16, device="cuda") for count in (6, 2))
        assert attention.can_use_flash(query, query)
        assert not attention.can_use_flash(query, key)
