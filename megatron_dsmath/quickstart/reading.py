"""A trained model read back into one process: what it loses on held-out text, and how it goes on from a prompt."""

from __future__ import annotations

from typing import NamedTuple

import torch

from megatron_dsmath.config import RunConfig
from megatron_dsmath.parallel import topology
from megatron_dsmath.training.job import open_job
from megatron_dsmath.training.validation import validate

NEW_TOKENS = 48


class Reading(NamedTuple):
    """The validation loss in nats per token, and the most likely continuation of a prompt."""

    validation_loss: float
    continuation: str


def read(run: RunConfig, prompt: str) -> Reading:
    """Load `model.initial_weights` of a run of one process and try it."""
    job = open_job(run, topology.start(run.parallel, run.seed))
    loss = validate(job)["validation_loss"]
    model, tokens = job.pieces[0].eval(), job.tokenizer.encode(prompt)
    for _ in range(NEW_TOKENS):
        with torch.no_grad():
            logits = model(torch.tensor([tokens[-run.data.sequence_length :]], device=job.topology.device), None, None)
        tokens.append(int(logits[0, -1].argmax()))
        if tokens[-1] == job.tokenizer.end_of_document:
            break
    topology.stop()
    return Reading(loss, job.tokenizer.decode(tokens)[len(prompt) :])
