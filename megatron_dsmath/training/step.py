"""One pass over a list of microbatches, and what it lost."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch

from megatron_dsmath.model.loss import sums_by_corpus
from megatron_dsmath.parallel.collectives import sum_of_reports
from megatron_dsmath.parallel.pipeline import run_microbatches
from megatron_dsmath.training.job import DeviceBatch, Job


def run_batches(job: Job, batches: Sequence[DeviceBatch], *, backward: bool) -> torch.Tensor:
    """Nats and target tokens by corpus over the global batch, on every rank: [corpora, 2] in fp64.

    With `backward`, gradients are left in the optimizer's buffers, divided by the global number of target tokens.
    """
    corpora = len(job.batches.names)
    if backward:
        for piece in job.pieces:
            piece.zero_grad_buffer()
        job.optimizer.zero_grad()
    loss_of = partial(sums_by_corpus, corpora=corpora)
    reports = run_microbatches(job.pieces, batches, loss_of, backward=backward)
    return sum_of_reports(reports, (corpora, 2), job.topology).cpu()


def mean_by_corpus(job: Job, totals: torch.Tensor) -> tuple[float, dict[str, float | None]]:
    """Nats per target token, over all and by corpus; null where a corpus had no token."""
    nats, tokens = totals.unbind(1)
    means = {
        name: float(nats[index] / tokens[index]) if tokens[index] else None
        for index, name in enumerate(job.batches.names)
    }
    return float(nats.sum() / tokens.sum()), means
