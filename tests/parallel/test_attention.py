from __future__ import annotations

import pytest
import torch

from megatron_dsmath.parallel.attention import CoreAttention
from megatron_dsmath.parallel.rotary import rotate
from megatron_dsmath.parallel.transformer import transformer_config
from tests.support.runs import run_config

THETA, CHANNELS = 10000.0, 8
SEQUENCE, BATCH = 11, 2


def core_attention(heads: int, groups: int) -> CoreAttention:
    run = run_config(model__hidden_size=heads * CHANNELS, model__attention_heads=heads, model__key_value_heads=groups)
    return CoreAttention(transformer_config(run, torch.device("cpu")), rope_theta=THETA)


def draw(heads: int, groups: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    counts = (heads, groups, groups)
    return [torch.randn(SEQUENCE, BATCH, count, CHANNELS, generator=generator).requires_grad_() for count in counts]


def explicit(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """softmax(q k / sqrt(channels)) v with the whole matrix, a key and value for each run of query heads."""
    repeats = query.size(2) // key.size(2)
    query, key = rotate(query, THETA), rotate(key, THETA)
    key, value = (tensor.repeat_interleave(repeats, dim=2) for tensor in (key, value))
    scores = torch.einsum("sbhc,tbhc->bhst", query, key) / CHANNELS**0.5
    future = torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(future, -torch.inf).softmax(-1)
    return torch.einsum("bhst,tbhc->sbhc", weights, value).flatten(2)


@pytest.mark.parametrize(("heads", "groups"), [(6, 6), (6, 2), (6, 1)])
def test_values_and_gradients_are_those_of_the_whole_matrix(heads: int, groups: int) -> None:
    attention, states = core_attention(heads, groups), draw(heads, groups)
    slope = torch.randn(SEQUENCE, BATCH, heads * CHANNELS, generator=torch.Generator().manual_seed(1))
    found = []
    for output in (attention(*states), explicit(*states)):
        found.append([output, *torch.autograd.grad(output, states, slope)])
    for our, their in zip(*found, strict=True):
        torch.testing.assert_close(our, their, atol=1e-5, rtol=0)  # fp32, values of order 1


def test_attention_within_a_document_equals_that_of_the_document_alone() -> None:
    attention, states = core_attention(6, 2), draw(6, 2)
    with torch.no_grad():
        packed = attention(*states, torch.tensor([0, 4, 5, 11, 22], dtype=torch.int32))
        for row, start, end in [(0, 0, 4), (0, 4, 5), (0, 5, 11), (1, 0, 11)]:
            alone = attention(*(tensor[start:end, row : row + 1] for tensor in states))
            found = packed[start:end, row : row + 1]
            torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)  # fp32, values of order 1


def test_no_position_depends_on_a_later_one() -> None:
    attention, (query, key, value) = core_attention(6, 2), draw(6, 2)
    with torch.no_grad():
        before = attention(query, key, value)
        for tensor in (query, key, value):
            tensor[7:] += 1
        after = attention(query, key, value)
    assert torch.equal(before[:7], after[:7])
    assert (before[7:] != after[7:]).any(dim=-1).all()
