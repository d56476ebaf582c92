"""Measures the model during a run: its loss on held-out data, and its answers to problems.

The command line passes the problems as an `Evaluation`. Each rank holds all weights while it answers its share of the
problems, so that every layout gives the answers of one process with that checkpoint.
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
from megatron_dsmath.parallel.pipeline import DeviceBatch
from megatron_dsmath.training.batches import to_device
from megatron_dsmath.training.job import Job
from megatron_dsmath.training.state import State
from megatron_dsmath.training.step import forward

Row = Mapping[str, Any]
Report = Callable[[int, Sequence[Row]], None]


def validate(job: Job, state: State) -> dict[str, Any]:
    """The validation entries of the metrics row of the step that led to `state`, in nats per token.

    Every call uses the same held-out samples, of the corpora of all phases.

    `validation_loss` is comparable with `loss` (`data.audit.run_batches.RunBatches.validation_loss`).
    """
    with gathered_parameters(job.model_chunks):
        for chunk in job.model_chunks:
            chunk.eval()
        whole, by_corpus = forward(job, _validation_batches(job))
        for chunk in job.model_chunks:
            chunk.train()
    loss = job.batches.validation_loss(state.next_sample, whole, by_corpus)
    return {"validation_loss": loss, "validation_loss_by_corpus": by_corpus}


def _validation_batches(job: Job) -> list[DeviceBatch]:
    """This rank's microbatches of the held-out data."""
    run, topology = job.run, job.topology
    drawn = job.batches.validation_batches(
        run.validation.sequences_per_corpus,
        run.parallel.microbatch_sequences,
        topology.data_rank,
        topology.data_size,
    )
    if run.parallel.virtual_stages > 1:
        # The interleaved schedule takes microbatches in groups of the pipeline's size.
        padding = [drawn[-1].without_targets()] * (-len(drawn) % topology.pipeline_size)
        drawn = [*drawn, *padding]
    return to_device(drawn, run.data, topology.device)


class Evaluation(Protocol):
    """An evaluation during training (implemented by `evaluation.live_evaluation`)."""

    @property
    def every_steps(self) -> int:
        """The number of steps between evaluations; the last step is evaluated too."""

    @property
    def flags(self) -> Sequence[str]:
        """The command-line flags that give a rank started by `--nproc` the same evaluation."""

    def rows(self, weights: WeightReader, rank: int, ranks: int) -> list[Row]:
        """This rank's graded answers, each with its problem's number in `row`. Contains no collective."""

    def figures(self, rows: Sequence[Row]) -> dict[str, Any]:
        """The entries of metrics.jsonl from the rows of all ranks."""


class LiveWeights(WeightReader):
    """All weights of the model after a step, on this rank's device."""

    def __init__(self, job: Job) -> None:
        """Gather the weights; a collective of all ranks."""
        self.path, self.model, self.tokenizer_files = job.directory.root, job.run.model, tuple(job.tokenizer.files)
        self.special_token_ids = special_token_ids(self.tokenizer_files)
        with gathered_parameters(job.model_chunks):
            self._tensors = gather_weights(job.model_chunks, job.run.model, job.topology)

    def dtype(self, name: str) -> torch.dtype:
        """The type in which a tensor is trained."""
        return self._tensors[name].dtype

    def _read(self, name: str, part: tuple[slice, ...]) -> torch.Tensor:
        return self._tensors[name][part]

    def close(self) -> None:
        """Free the memory."""
        self._tensors = {}


def evaluate(job: Job, evaluation: Evaluation, step: int, report: Report) -> dict[str, Any]:
    """The evaluation entries of a metrics row; writes all answers to logs/evaluation_step_N.jsonl and to `report`.

    An evaluation that fails on a rank is printed and has no entries: the run continues.
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
