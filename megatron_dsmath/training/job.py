"""Everything a run works with, opened in the order in which mistakes are cheapest to find."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from megatron_dsmath.checkpoint.weights import check_same_model, open_weights
from megatron_dsmath.config.sections import DataConfig, RunConfig
from megatron_dsmath.data.audit.ledger import Ledger
from megatron_dsmath.data.audit.run_batches import RunBatches
from megatron_dsmath.data.mixture.microbatch import Microbatch
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer
from megatron_dsmath.model import decoder
from megatron_dsmath.parallel import optimizer as gradients
from megatron_dsmath.parallel.attention import document_bounds
from megatron_dsmath.parallel.optimizer import DataParallelChunk, Optimizer
from megatron_dsmath.parallel.pipeline import DeviceBatch
from megatron_dsmath.parallel.topology import Topology
from megatron_dsmath.training.inputs import open_inputs
from megatron_dsmath.training.run_directory import RunDirectory
from megatron_dsmath.training.state import State


@dataclass
class Job:
    """A run, opened on this rank."""

    run: RunConfig
    topology: Topology
    directory: RunDirectory
    tokenizer: Tokenizer
    batches: RunBatches
    model_chunks: list[DataParallelChunk]
    optimizer: Optimizer
    start: State
    ledger: Ledger

    def step_batches(self, next_sample: int) -> list[DeviceBatch]:
        """This rank's microbatches of the step that starts at `next_sample`."""
        run, topology = self.run, self.topology
        drawn = self.batches.step_batches(
            next_sample,
            run.schedule.sequences_per_step,
            run.parallel.microbatch_sequences,
            topology.data_rank,
            topology.data_size,
        )
        return to_device(drawn, run.data, topology.device)

    def validation_batches(self) -> list[DeviceBatch]:
        """This rank's microbatches of the held-out parts."""
        run, topology = self.run, self.topology
        drawn = self.batches.validation_batches(
            run.validation.sequences_per_corpus,
            run.parallel.microbatch_sequences,
            topology.data_rank,
            topology.data_size,
        )
        if run.parallel.virtual_stages > 1:
            # The interleaved schedule moves microbatches in groups of the pipeline's length.
            padding = [drawn[-1].without_targets()] * (-len(drawn) % topology.pipeline_size)
            drawn = [*drawn, *padding]
        return to_device(drawn, run.data, topology.device)


def to_device(microbatches: Iterable[Microbatch], data: DataConfig, device: torch.device) -> list[DeviceBatch]:
    """The microbatches as tensors on `device`."""

    def tensor(array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    def bounds(batch: Microbatch) -> torch.Tensor | None:
        if data.attend_across_documents:
            return None
        return tensor(document_bounds(batch.document_starts, data.sequence_length))

    return [
        DeviceBatch(
            tokens=tensor(batch.tokens),
            loss_mask=tensor(batch.loss_mask.astype(np.float32)),
            groups=tensor(np.maximum(batch.groups, 0).astype(np.int64)),  # PADDING: masked, so it adds nothing to 0
            samples=tensor(batch.samples),
            document_bounds=bounds(batch),
        )
        for batch in microbatches
    ]


def open_job(run: RunConfig, topology: Topology, checkpoint: Path | None = None) -> Job:
    """Open tokenizer and corpora, build the model with the weights a run starts from, and the optimizer over it.

    To go on after `checkpoint`, the model must be given the weights in it before it computes.
    """
    inputs = open_inputs(run, checkpoint)
    directory = RunDirectory(Path(run.output))
    model_chunks = decoder.build(run, topology)
    if checkpoint is None:
        decoder.load_weights(model_chunks, run.model, topology, first_weights(run, topology))
    reduced = gradients.wrap_data_parallel(run, model_chunks, topology.data_size)
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
