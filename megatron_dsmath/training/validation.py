"""Loss on the held-out parts, by corpus and as the mixture weighs them."""

from __future__ import annotations

from typing import Any

from megatron_dsmath.parallel.optimizer import parameters_in_place
from megatron_dsmath.training.job import Job
from megatron_dsmath.training.step import mean_by_corpus, run_batches


def validate(job: Job) -> dict[str, Any]:
    """Validation's part of a metrics row, in nats per token over the same held-out samples every time.

    Each corpus has as many samples, so the mean over corpora is weighted as the mixture: comparable with `loss`.
    """
    with parameters_in_place(job.pieces):
        for piece in job.pieces:
            piece.eval()
        totals = run_batches(job, job.validation_batches(), backward=False)
        for piece in job.pieces:
            piece.train()
    _, by_corpus = mean_by_corpus(job, totals)
    shares = zip(job.batches.shares, by_corpus.values(), strict=True)
    mean = sum(float(share) * loss for share, loss in shares if loss is not None)
    return {"validation_loss": mean, "validation_loss_by_corpus": by_corpus}
