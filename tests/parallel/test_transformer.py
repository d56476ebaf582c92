"""RMSNorm against transformers and cross-entropy against torch, values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from megatron_dsmath.parallel.transformer import CrossEntropy, RMSNorm, transformer_config
from tests.support.runs import run_config

HIDDEN = 48


def build_norm(precision: str = "fp32", epsilon: float = 1e-6, **parallel: Any) -> RMSNorm:
    run = run_config(precision=precision, **{f"parallel__{key}": value for key, value in parallel.items()})
    return RMSNorm(transformer_config(run, torch.device("cpu")), HIDDEN, epsilon)


# Both add squares and multiply in fp32. In bf16 transformers rounds before it multiplies by the weight and after, torch
# only after: one part in 2^8 at most, and gradients are sums of such products.
TOLERANCES = {"fp32": 1e-5, "bf16": 2**-7}


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("epsilon", [1e-6, 1.0])
def test_the_norm_has_the_values_and_gradients_of_transformers(precision: str, epsilon: float) -> None:
    from transformers.models.llama.modeling_llama import LlamaRMSNorm

    norm, reference = build_norm(precision, epsilon), LlamaRMSNorm(HIDDEN, epsilon)
    generator = torch.Generator().manual_seed(0)
    weight = 1 + 0.3 * torch.randn(HIDDEN, generator=generator)
    states = 3 * torch.randn(7, 2, HIDDEN, generator=generator)
    slope = torch.randn(7, 2, HIDDEN, generator=generator)
    found = []
    for module in (norm, reference.to(norm.weight.dtype)):
        module.weight.data.copy_(weight)
        hidden = states.to(module.weight.dtype).requires_grad_()
        output = module(hidden)
        output.backward(slope.to(output.dtype))
        found.append((output, hidden.grad, module.weight.grad))
    for our, their in zip(*found, strict=True):
        assert our.dtype == their.dtype
        scale = their.abs().max().item()
        torch.testing.assert_close(our, their, atol=TOLERANCES[precision] * scale, rtol=0)


def test_a_position_has_mean_square_one_before_the_weight() -> None:
    hidden = 100 * torch.randn(5, 1, HIDDEN, generator=torch.Generator().manual_seed(1))
    mean_square = build_norm()(hidden).square().mean(-1)
    torch.testing.assert_close(mean_square, torch.ones(5, 1), atol=1e-5, rtol=0)  # fp32


def test_the_norm_weight_is_marked_under_sequence_parallelism() -> None:
    assert build_norm(tensor=2, sequence=True).weight.sequence_parallel is True
    assert build_norm(tensor=2).weight.sequence_parallel is False


def draw(rows: int, vocabulary: int, dtype: torch.dtype, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    logits = (scale * torch.randn(rows, vocabulary, generator=generator)).to(dtype).requires_grad_()
    return logits, torch.randint(0, vocabulary, (rows,), generator=generator)


# Both compute in fp32 from the same logits. The gradient is then rounded once to the logits' type: 2^-8 of it in bf16.
GRADIENT_TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "vocabulary"), [(64, 97), (1, 5), (3, 1), (0, 7)])
def test_cross_entropy_has_the_values_and_gradients_of_torch(rows: int, vocabulary: int, dtype: torch.dtype) -> None:
    logits, labels = draw(rows, vocabulary, dtype)
    slope = torch.linspace(-1, 2, rows)  # a mask's zeros and any weight
    ours: torch.Tensor = CrossEntropy.apply(logits, labels)
    theirs = F.cross_entropy(logits.float(), labels, reduction="none")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-6)
    (our_gradient,) = torch.autograd.grad(ours, logits, slope)
    (their_gradient,) = torch.autograd.grad(theirs, logits, slope)
    assert our_gradient.dtype == dtype
    torch.testing.assert_close(our_gradient, their_gradient, atol=1e-6, rtol=GRADIENT_TOLERANCES[dtype])


def test_logits_that_are_far_apart_do_not_overflow() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]], requires_grad=True)
    nats = CrossEntropy.apply(logits, torch.tensor([1, 2]))
    assert nats.tolist() == pytest.approx([2e4, torch.tensor(3.0).log().item()])
    nats.sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor([[1.0, -1.0, 0.0], [1 / 3, 1 / 3, -2 / 3]]))


def test_the_gradient_sums_to_zero_over_the_vocabulary() -> None:
    logits, labels = draw(16, 33, torch.float32)
    CrossEntropy.apply(logits, labels).sum().backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.sum(1), torch.zeros(16), atol=1e-6, rtol=0)  # fp32
