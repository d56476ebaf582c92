"""Nats of the labels with one matrix of fp32 beside the logits (as DeepSeek LLM, section 2.4, does it in place)."""

from __future__ import annotations

from typing import Any

import torch


class CrossEntropy(torch.autograd.Function):
    """-log softmax(logits)[label] in fp32. What the forward keeps, the backward turns into the gradient in place.

    logits: [rows, vocabulary]; labels: [rows]; returns [rows]. The backward may run once.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Nats [rows]."""
        log_probabilities = torch.log_softmax(logits, 1, dtype=torch.float32)
        ctx.dtype = logits.dtype
        ctx.save_for_backward(log_probabilities, labels)
        return -log_probabilities.gather(1, labels[:, None])[:, 0]

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """softmax - 1 at the label, times the gradient of each row."""
        log_probabilities, labels = ctx.saved_tensors
        probabilities = log_probabilities.detach().exp_()
        probabilities.scatter_add_(1, labels[:, None], probabilities.new_full((len(labels), 1), -1.0))
        return probabilities.mul_(gradient[:, None]).to(ctx.dtype), None
