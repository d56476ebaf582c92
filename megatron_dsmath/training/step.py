"""One pass over a list of microbatches, and what it lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch

from megatron_dsmath.fault_injection import fault_factor, fault_point
from megatron_dsmath.model.loss import sum_by_group
from megatron_dsmath.parallel.collectives import sum_reports, sum_reports_and_norm
from megatron_dsmath.parallel.optimizer import gradient_norm
from megatron_dsmath.parallel.pipeline import DeviceBatch, run_microbatches
from megatron_dsmath.training.job import Job
from megatron_dsmath.training.rank_progress import HERE, mark


class StepSums(NamedTuple):
    """What a step's global batch came to; the same on every rank but for `reports`."""

    loss: float
    """Nats per target token."""
    loss_by_corpus: dict[str, float | None]
    """The same by corpus, or by group of conversations; None where it had no token."""
    tokens_by_corpus: dict[str, int]
    """Target tokens."""
    gradient_norm: float
    """Before clipping; no finite number if it was none on any rank."""
    reports: list[torch.Tensor]
    """Nats and target tokens by name, [names, 2], of each microbatch; only on the last pipeline stage."""


def forward_backward(job: Job, batches: Sequence[DeviceBatch]) -> StepSums:
    """Leave the gradients of the global batch in the optimizer's buffers, divided by its number of target tokens.

    No weight has changed yet. The loss and the norm are agreed on in one collective, so that all ranks judge alike.
    """
    for chunk in job.model_chunks:
        chunk.zero_grad_buffer()
    job.optimizer.zero_grad()
    reports = _run(job, batches, backward=True)
    factor = fault_factor("step.gradients", HERE.step)
    if factor != 1.0:
        for chunk in job.model_chunks:
            chunk.scale_gradients(factor)
    mark("gradient norm, sum of losses, update")
    norm = gradient_norm(job.optimizer)
    totals, norm = sum_reports_and_norm(reports, (len(job.batches.group_names), 2), norm, job.topology)
    tokens = dict(zip(job.batches.group_names, map(int, totals[:, 1]), strict=True))
    return StepSums(*_means(job, totals), tokens, norm, reports)


def forward(job: Job, batches: Sequence[DeviceBatch]) -> tuple[float, dict[str, float | None]]:
    """Nats per target token over the batches of all ranks, whole and by corpus; nothing is left behind."""
    reports = _run(job, batches, backward=False)
    mark("sum of losses")
    return _means(job, sum_reports(reports, (len(job.batches.group_names), 2), job.topology).cpu())


def _run(job: Job, batches: Sequence[DeviceBatch], *, backward: bool) -> list[torch.Tensor]:
    loss_of = partial(_loss if backward else sum_by_group, groups=len(job.batches.group_names))
    return run_microbatches(job.model_chunks, _Marked(batches), loss_of, backward=backward)


def _loss(nats: torch.Tensor, batch: DeviceBatch, groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    factor = fault_factor("step.loss", HERE.step)
    return sum_by_group(nats if factor == 1.0 else nats * factor, batch, groups)


def _means(job: Job, totals: torch.Tensor) -> tuple[float, dict[str, float | None]]:
    nats, tokens = totals.unbind(1)
    means = {
        name: float(nats[index] / tokens[index]) if tokens[index] else None
        for index, name in enumerate(job.batches.group_names)
    }
    # Each target is in equally many groups (of conversations: a kind, a language, a source), so it counts once.
    return float(nats.sum() / tokens.sum()), means


class _Marked(list[DeviceBatch]):
    """Microbatches that tell the watchdog when the schedule draws them."""

    def __iter__(self) -> Iterator[DeviceBatch]:
        for number, batch in enumerate(super().__iter__(), 1):
            mark(f"microbatch {number} of {len(self)}")
            fault_point("microbatch.begin")
            yield batch
