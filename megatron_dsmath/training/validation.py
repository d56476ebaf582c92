"""Loss on the held-out parts, by corpus and as the mixture weighs them."""

from __future__ import annotations

from typing import Any

from megatron_dsmath.parallel.optimizer import gathered_parameters
from megatron_dsmath.training.job import Job
from megatron_dsmath.training.step import forward


def validate(job: Job) -> dict[str, Any]:
    """Validation's part of a metrics row, in nats per token over the same held-out samples every time.

    `validation_loss` is comparable with `loss` (`data.reading.RunBatches.validation_loss`).
    """
    with gathered_parameters(job.model_chunks):
        for chunk in job.model_chunks:
            chunk.eval()
        whole, by_corpus = forward(job, job.validation_batches())
        for chunk in job.model_chunks:
            chunk.train()
    loss = job.batches.validation_loss(whole, by_corpus)
    return {"validation_loss": loss, "validation_loss_by_corpus": by_corpus}
