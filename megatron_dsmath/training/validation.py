"""Loss on the held-out parts, by corpus and as the mixture weighs them."""

from __future__ import annotations

from typing import Any

from megatron_dsmath.parallel.optimizer import parameters_in_place
from megatron_dsmath.training.job import Job
from megatron_dsmath.training.step import forward


def validate(job: Job) -> dict[str, Any]:
    """Validation's part of a metrics row, in nats per token over the same held-out samples every time.

    `validation_loss` is comparable with `loss` (`data.reading.RunBatches.validation_loss`).
    """
    with parameters_in_place(job.pieces):
        for piece in job.pieces:
            piece.eval()
        whole, by_corpus = forward(job, job.validation_batches())
        for piece in job.pieces:
            piece.train()
    loss = job.batches.validation_loss(whole, by_corpus)
    return {"validation_loss": loss, "validation_loss_by_corpus": by_corpus}
