from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_dsmath.parallel.transformer import RMSNorm, transformer_config
from tests.support.runs import run_config

HIDDEN = 48


def ours(precision: str = "fp32", epsilon: float = 1e-6, **parallel: Any) -> RMSNorm:
    run = run_config(precision=precision, **{f"parallel__{key}": value for key, value in parallel.items()})
    return RMSNorm(transformer_config(run, torch.device("cpu")), HIDDEN, epsilon)


# Both add squares and multiply in fp32. In bf16 transformers rounds before it multiplies by the weight and after, torch
# only after: one part in 2^8 at most, and gradients are sums of such products.
TOLERANCES = {"fp32": 1e-5, "bf16": 2**-7}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("epsilon", [1e-6, 1.0])
def test_values_and_gradients_are_those_of_transformers(precision: str, epsilon: float) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    ours_, theirs = ours(precision, epsilon), LlamaRMSNorm(HIDDEN, epsilon)
    generator = torch.Generator().manual_seed(0)
    weight = 1 + 0.3 * torch.randn(HIDDEN, generator=generator)
    states = 3 * torch.randn(7, 2, HIDDEN, generator=generator)
    slope = torch.randn(7, 2, HIDDEN, generator=generator)
    found = []
    for norm in (ours_, theirs.to(ours_.weight.dtype)):
        norm.weight.data.copy_(weight)
        hidden = states.to(norm.weight.dtype).requires_grad_()
        output = norm(hidden)
        output.backward(slope.to(output.dtype))
        found.append((output, hidden.grad, norm.weight.grad))
    for our, their in zip(*found, strict=True):
        assert our.dtype == their.dtype
        scale = their.abs().max().item()
        torch.testing.assert_close(our, their, atol=TOLERANCES[precision] * scale, rtol=0)


def test_a_position_has_mean_square_one_before_the_weight() -> None:
    hidden = 100 * torch.randn(5, 1, HIDDEN, generator=torch.Generator().manual_seed(1))
    mean_square = ours()(hidden).square().mean(-1)
    torch.testing.assert_close(mean_square, torch.ones(5, 1), atol=1e-5, rtol=0)  # fp32


def test_the_weight_says_whether_its_gradient_is_a_part() -> None:
    assert ours(tensor=2, sequence=True).weight.sequence_parallel is True
    assert ours(tensor=2).weight.sequence_parallel is False
