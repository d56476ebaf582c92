"""Forward and backward over a step's microbatches, through megatron-core's schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func


class DeviceBatch(NamedTuple):
    """A microbatch as tensors on the model's device."""

    tokens: torch.Tensor
    """[microbatch, sequence + 1]; inputs are all but the last, targets all but the first."""
    loss_mask: torch.Tensor
    """[microbatch, sequence], 1.0 where the target counts in the loss."""
    groups: torch.Tensor
    """The groups of each target (`model.loss`): int64 [microbatch, sequence or 1, groups of each]."""
    samples: torch.Tensor
    """[microbatch], the numbers of the sequences in the run."""
    document_bounds: torch.Tensor | None
    """As `parallel.attention.document_bounds` returns them; None where attention crosses documents."""


# (nats [microbatch, sequence], microbatch) -> (sum of nats, target tokens, what to report of them)
LossOf = Callable[[torch.Tensor, DeviceBatch], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def run_microbatches(
    model_chunks: Sequence[torch.nn.Module],
    microbatches: Sequence[DeviceBatch],
    loss_of: LossOf,
    *,
    backward: bool,
) -> list[torch.Tensor]:
    """Run each microbatch through the pipeline; gradients are the mean over the global batch's target tokens.

    Returns what `loss_of` reports for each microbatch; empty on all but the last pipeline stage.
    """
    first = microbatches[0].tokens
    with torch.set_grad_enabled(backward):  # megatron-core's forward-only schedules keep the activations
        reports: list[torch.Tensor] = get_forward_backward_func()(
            forward_step_func=partial(_forward, loss_of),
            # Each virtual stage walks the microbatches on its own.
            data_iterator=[iter(microbatches) for _ in model_chunks] if len(model_chunks) > 1 else iter(microbatches),
            model=list(model_chunks),
            num_microbatches=len(microbatches),
            seq_length=first.size(1) - 1,
            micro_batch_size=first.size(0),
            forward_only=not backward,
        )
    return reports


def _forward(loss_of: LossOf, microbatches: Iterator[DeviceBatch], chunk: torch.nn.Module) -> tuple[torch.Tensor, Any]:
    microbatch = next(microbatches)
    # Every stage reads the bounds from its own copy of the microbatch. Attention is causal by its kernel and knows the
    # positions: neither a mask nor ids are needed.
    output = chunk(microbatch.tokens[:, :-1], None, microbatch.document_bounds, labels=microbatch.tokens[:, 1:])
    return output, lambda nats: loss_of(nats, microbatch)
