"""Everything a run works with, opened in the order in which mistakes are cheapest to find."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from megatron_dsmath.checkpoint.weights import check_same_model, open_weights
from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.data.ledger.ledger import Ledger
from megatron_dsmath.data.reading import RunBatches, RunMicrobatch
from megatron_dsmath.data.tokenizer import Tokenizer
from megatron_dsmath.model import decoder
from megatron_dsmath.parallel import optimizer as gradients
from megatron_dsmath.parallel.documents import document_bounds
from megatron_dsmath.parallel.optimizer import Optimizer, ReducedPiece
from megatron_dsmath.parallel.topology import Topology
from megatron_dsmath.training.inputs import open_inputs
from megatron_dsmath.training.run_directory import RunDirectory
from megatron_dsmath.training.state import State


class DeviceBatch(NamedTuple):
    """A microbatch where the model is: `data.reading.RunMicrobatch` as tensors."""

    tokens: torch.Tensor  # [microbatch, sequence + 1]
    loss_mask: torch.Tensor  # [microbatch, sequence], 1.0 for a target
    groups: torch.Tensor  # [microbatch, sequence or 1, groups of each target], see `model.loss`
    samples: torch.Tensor  # [microbatch], their numbers in the run
    document_bounds: torch.Tensor | None  # as `parallel.documents` has them; None where attention crosses documents


@dataclass
class Job:
    """A run, opened on this rank."""

    run: RunConfig
    topology: Topology
    directory: RunDirectory
    tokenizer: Tokenizer
    batches: RunBatches
    pieces: list[ReducedPiece]
    optimizer: Optimizer
    start: State
    ledger: Ledger

    def step_batches(self, next_sample: int) -> list[DeviceBatch]:
        """This rank's microbatches of the step that starts at `next_sample`."""
        run, topology = self.run, self.topology
        drawn = self.batches.at(
            next_sample,
            run.schedule.sequences_per_step,
            run.parallel.microbatch_sequences,
            topology.data_rank,
            topology.data_size,
        )
        return self._on_device(drawn)

    def validation_batches(self) -> list[DeviceBatch]:
        """This rank's microbatches of the held-out parts."""
        run, topology = self.run, self.topology
        drawn = self.batches.validation(
            run.validation.sequences_per_corpus,
            run.parallel.microbatch_sequences,
            topology.data_rank,
            topology.data_size,
        )
        if run.parallel.virtual_stages > 1:
            # The interleaved schedule moves microbatches in groups of the pipeline's length.
            padding = [drawn[-1].without_targets()] * (-len(drawn) % topology.pipeline_size)
            drawn = [*drawn, *padding]
        return self._on_device(drawn)

    def _on_device(self, microbatches: Sequence[RunMicrobatch]) -> list[DeviceBatch]:
        def place(array: Any) -> torch.Tensor:
            return torch.from_numpy(array).to(self.topology.device, non_blocking=True)

        def bounds(batch: RunMicrobatch) -> torch.Tensor | None:
            return None if crosses else place(document_bounds(batch.document_starts, length))

        length, crosses = self.run.data.sequence_length, self.run.data.attend_across_documents
        return [
            DeviceBatch(
                place(batch.tokens),
                place(batch.loss_mask.astype(np.float32)),
                place(np.maximum(batch.groups, 0).astype(np.int64)),  # what is not learned adds nothing anywhere
                place(batch.samples),
                bounds(batch),
            )
            for batch in microbatches
        ]


def open_job(run: RunConfig, topology: Topology, checkpoint: Path | None = None) -> Job:
    """Open tokenizer and corpora, build the model with the weights a run starts from, and the optimizer over it.

    To go on after `checkpoint`, the model must be given the weights in it before it computes.
    """
    inputs = open_inputs(run, checkpoint)
    directory = RunDirectory(Path(run.output))
    pieces = decoder.build(run, topology)
    if checkpoint is None:
        decoder.load_weights(pieces, run.model, topology, first_weights(run, topology))
    reduced = gradients.reduce_gradients(run, pieces, topology.data_size)
    optimizer = gradients.build(run, reduced)
    ledger = Ledger(directory.ledger)
    return Job(run, topology, directory, inputs.tokenizer, inputs.batches, reduced, optimizer, inputs.state, ledger)


def first_weights(run: RunConfig, topology: Topology) -> decoder.WeightSource:
    """The weights a run starts from: `model.initial_weights`, or drawn from the seed."""
    if run.model.initial_weights is None:
        return decoder.WeightsFromSeed(run.model, run.seed)
    weights = open_weights(Path(run.model.initial_weights), topology.rank, topology.world_size)
    check_same_model(weights.model, run.model)
    return weights
