"""The loss and the gradients of a list of microbatches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import torch

from megatron_dsmath.data.audit.ledger import StepHash
from megatron_dsmath.fault_injection import fault_factor, fault_point
from megatron_dsmath.model.loss import sum_by_group
from megatron_dsmath.parallel.collectives import sum_reports, sum_step
from megatron_dsmath.parallel.optimizer import gradient_norm
from megatron_dsmath.parallel.pipeline import DeviceBatch, run_microbatches
from megatron_dsmath.training.job import Job
from megatron_dsmath.training.rank_progress import RankProgress
from megatron_dsmath.training.tokens_hash import agreed_hash, hash_words


class StepSums(NamedTuple):
    """The sums over a step's global batch; the same on every rank except `reports`."""

    loss: float  # nats per target token
    loss_by_corpus: dict[str, float | None]  # of each corpus or group of conversations; None where it has no target
    tokens_by_corpus: dict[str, int]  # target tokens
    gradient_norm: float  # before clipping; not finite if it is not finite on any rank
    reports: list[torch.Tensor]  # per microbatch: nats and target tokens [names, 2]; only on the last pipeline stage
    tokens_hash: StepHash  # of the tokens that entered the model (`tokens_hash`)


def forward_backward(job: Job, batches: Sequence[DeviceBatch]) -> StepSums:
    """Compute the gradients of the global batch, divided by its number of target tokens, in the optimizer's buffers.

    The weights do not change. All ranks get the loss, the norm and the tokens' hash from one collective, so that they
    decide alike. Raises InternalError where ranks that share a microbatch have different tokens (`tokens_hash`).
    """
    for chunk in job.model_chunks:
        chunk.zero_grad_buffer()
    job.optimizer.zero_grad()
    reports = _run(job, batches, backward=True)
    factor = fault_factor("step.gradients", job.progress.step)
    if factor != 1.0:
        for chunk in job.model_chunks:
            chunk.scale_gradients(factor)
    job.progress.mark("gradient norm, sum of losses, update")
    norm, shape = gradient_norm(job.optimizer), (len(job.batches.group_names), 2)
    totals, norm, hash_sums = sum_step(reports, shape, norm, hash_words(batches, job.topology), job.topology)
    tokens_hash = agreed_hash(hash_sums, batches, job.topology)
    tokens = dict(zip(job.batches.group_names, map(int, totals[:, 1]), strict=True))
    return StepSums(*_means(job, totals), tokens, norm, reports, tokens_hash)


def forward(job: Job, batches: Sequence[DeviceBatch]) -> tuple[float, dict[str, float | None]]:
    """Nats per target token over the batches of all ranks, of all targets and by corpus; computes no gradients."""
    reports = _run(job, batches, backward=False)
    job.progress.mark("sum of losses")
    return _means(job, sum_reports(reports, (len(job.batches.group_names), 2), job.topology).cpu())


def _run(job: Job, batches: Sequence[DeviceBatch], *, backward: bool) -> list[torch.Tensor]:
    loss = partial(_loss, job.progress.step) if backward else sum_by_group
    loss_of = partial(loss, groups=len(job.batches.group_names))
    return run_microbatches(job.model_chunks, _MarkedBatches(batches, job.progress), loss_of, backward=backward)


def _loss(
    step: int, nats: torch.Tensor, batch: DeviceBatch, groups: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    factor = fault_factor("step.loss", step)
    return sum_by_group(nats if factor == 1.0 else nats * factor, batch, groups)


def _means(job: Job, totals: torch.Tensor) -> tuple[float, dict[str, float | None]]:
    nats, tokens = totals.unbind(1)
    means = {
        name: float(nats[index] / tokens[index]) if tokens[index] else None
        for index, name in enumerate(job.batches.group_names)
    }
    # Each target is in the same number of groups (of conversations: kind, language and source), so it counts once.
    return float(nats.sum() / tokens.sum()), means


class _MarkedBatches(list[DeviceBatch]):
    """Microbatches that are marked in the rank's progress when the pipeline's schedule takes them."""

    def __init__(self, batches: Sequence[DeviceBatch], progress: RankProgress) -> None:
        super().__init__(batches)
        self._progress = progress

    def __iter__(self) -> Iterator[DeviceBatch]:
        for number, batch in enumerate(super().__iter__(), 1):
            self._progress.mark(f"microbatch {number} of {len(self)}")
            fault_point("microbatch.begin")
            yield batch
