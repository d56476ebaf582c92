"""Forward and backward passes over a step's microbatches with megatron-core's pipeline schedules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func


class DeviceBatch(NamedTuple):
    """A microbatch as tensors on the model's device."""

    tokens: torch.Tensor  # [microbatch, sequence + 1]; inputs are all but the last, targets all but the first
    loss_mask: torch.Tensor  # [microbatch, sequence], 1.0 where the target counts in the loss
    groups: torch.Tensor  # of each target (`model.loss`): int64 [microbatch, sequence or 1, groups per target]
    samples: torch.Tensor  # [microbatch], the index of each sequence in the run
    document_bounds: torch.Tensor | None  # of `parallel.attention`; None if attention crosses documents


# (nats [microbatch, sequence], microbatch) -> (sum of nats, number of target tokens, report)
LossOf = Callable[[torch.Tensor, DeviceBatch], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def run_microbatches(
    model_chunks: Sequence[torch.nn.Module],
    microbatches: Sequence[DeviceBatch],
    loss_of: LossOf,
    *,
    backward: bool,
) -> list[torch.Tensor]:
    """Run all microbatches through the pipeline and return the report of `loss_of` for each.

    The list is empty on all but the last pipeline stage. Gradients are those of the mean over the global batch's target
    tokens.
    """
    first = microbatches[0].tokens
    with torch.set_grad_enabled(backward):  # megatron-core's forward-only schedules keep the activations
        reports: list[torch.Tensor] = get_forward_backward_func()(
            forward_step_func=partial(_forward, loss_of),
            # Each virtual stage iterates over the microbatches independently.
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
    # Every stage reads the bounds from its own copy of the microbatch. The attention kernel is causal and computes the
    # positions, so neither a mask nor position ids are passed.
    output = chunk(microbatch.tokens[:, :-1], None, microbatch.document_bounds, labels=microbatch.tokens[:, 1:])
    return output, lambda nats: loss_of(nats, microbatch)
