from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from megatron_dsmath.parallel.transformer import CrossEntropy


def draw(rows: int, vocabulary: int, dtype: torch.dtype, scale: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    logits = (scale * torch.randn(rows, vocabulary, generator=generator)).to(dtype).requires_grad_()
    return logits, torch.randint(0, vocabulary, (rows,), generator=generator)


# Both compute in fp32 from the same logits. The gradient is then rounded once to the logits' type: 2^-8 of it in bf16.
GRADIENT_TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 2**-8}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "vocabulary"), [(64, 97), (1, 5), (3, 1), (0, 7)])
def test_nats_and_gradients_are_those_of_torch(rows: int, vocabulary: int, dtype: torch.dtype) -> None:
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


def test_logits_far_apart_overflow_nothing() -> None:
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
