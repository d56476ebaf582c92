"""Problems answered by the model as it stands, every so many steps.

Training knows no problems: the command line hands it an `Evaluation`. Each rank holds the whole model for as long as
its share of the problems takes, so that every layout answers as one process would with a checkpoint of that step.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch

from megatron_dsmath.checkpoint.tokenizer_files import special_token_ids
from megatron_dsmath.checkpoint.weight_reader import WeightReader
from megatron_dsmath.files.atomic_files import replace_text
from megatron_dsmath.model.decoder import gather_weights
from megatron_dsmath.parallel.collectives import gather_objects
from megatron_dsmath.parallel.optimizer import gathered_parameters
from megatron_dsmath.training.batches import validation_batches
from megatron_dsmath.training.job import Job
from megatron_dsmath.training.step import forward


def validate(job: Job) -> dict[str, Any]:
    """The validation entries of a metrics row, in nats per token; every call uses the same held-out samples.

    `validation_loss` is comparable with `loss` (`data.audit.run_batches.RunBatches.validation_loss`).
    """
    with gathered_parameters(job.model_chunks):
        for chunk in job.model_chunks:
            chunk.eval()
        whole, by_corpus = forward(job, validation_batches(job))
        for chunk in job.model_chunks:
            chunk.train()
    loss = job.batches.validation_loss(whole, by_corpus)
    return {"validation_loss": loss, "validation_loss_by_corpus": by_corpus}


Row = Mapping[str, Any]
Report = Callable[[int, Sequence[Row]], None]


class Evaluation(Protocol):
    """What the command line asks of training (`megatron_dsmath.evaluation.live_evaluation`)."""

    @property
    def every_steps(self) -> int:
        """After this many steps, and after the last."""

    @property
    def flags(self) -> Sequence[str]:
        """What tells a rank of it that `--nproc` starts."""

    def rows(self, weights: WeightReader, rank: int, ranks: int) -> list[Row]:
        """This rank's share of the answers, graded, each with its problem's number in `row`. No rank waits here."""

    def figures(self, rows: Sequence[Row]) -> dict[str, Any]:
        """What metrics.jsonl keeps of the rows of all ranks."""


class LiveWeights(WeightReader):
    """The weights as they are after a step, whole on this rank's device."""

    def __init__(self, job: Job) -> None:
        """All ranks must do this together."""
        self.path, self.model, self.tokenizer_files = job.directory.root, job.run.model, tuple(job.tokenizer.files)
        self.special_token_ids = special_token_ids(self.tokenizer_files)
        with gathered_parameters(job.model_chunks):
            self._tensors = gather_weights(job.model_chunks, job.run.model, job.topology)

    def dtype(self, name: str) -> torch.dtype:
        """What a tensor is trained in."""
        return self._tensors[name].dtype

    def _read(self, name: str, part: tuple[slice, ...]) -> torch.Tensor:
        return self._tensors[name][part]

    def close(self) -> None:
        """Give the memory back."""
        self._tensors = {}


def evaluate(job: Job, evaluation: Evaluation, step: int, report: Report) -> dict[str, Any]:
    """An evaluation's part of a metrics row; every answer goes to logs/evaluation_step_N.jsonl, and to `report`.

    One that fails on a rank is said, and has no figures: a sandbox that breaks is no reason to end a run.
    """
    weights, topology = LiveWeights(job), job.topology
    found: list[Row] | str
    try:
        found = evaluation.rows(weights, topology.rank, topology.world_size)
    except Exception as error:  # whatever it is, the other ranks must not wait for this one
        found = f"{type(error).__name__}: {error}"
    weights.close()
    shares = gather_objects(found, topology)
    failures = [share for share in shares if isinstance(share, str)]
    if failures:
        if topology.rank == 0:
            print(f"the evaluation after step {step} failed: {failures[0]}", file=sys.stderr, flush=True)
        return {}
    rows = sorted((row for share in shares for row in share), key=lambda row: int(row["row"]))
    if topology.rank == 0:
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        text = lines.encode("utf-8", "backslashreplace").decode()  # a model may write half a character
        replace_text(job.directory.logs / f"evaluation_step_{step}.jsonl", text)
        report(step, rows)
    return {f"evaluation_{name}": figure for name, figure in evaluation.figures(rows).items()}
