"""A run that is opened on a rank: tokenizer, data, model and optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from megatron_dsmath.checkpoint.manifest import check_same_model
from megatron_dsmath.checkpoint.weights import open_weights
from megatron_dsmath.config.phases import phase_at
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.data.audit.ledger import Ledger, StepHash
from megatron_dsmath.data.audit.run_batches import RunBatches
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer
from megatron_dsmath.fault_injection import fault_point
from megatron_dsmath.model import decoder
from megatron_dsmath.parallel import optimizer as gradients
from megatron_dsmath.parallel.optimizer import DataParallelChunk, Optimizer
from megatron_dsmath.parallel.topology import Topology
from megatron_dsmath.training.inputs import open_inputs
from megatron_dsmath.training.rank_progress import RankProgress
from megatron_dsmath.training.run_directory import RunDirectory
from megatron_dsmath.training.state import State


@dataclass
class Job:
    """The parts of a run on this rank."""

    run: RunConfig
    topology: Topology
    directory: RunDirectory
    tokenizer: Tokenizer
    batches: RunBatches
    model_chunks: list[DataParallelChunk]
    optimizer: Optimizer
    start: State
    ledger: Ledger
    progress: RankProgress

    def record_step(self, state: State, tokens_hash: StepHash) -> None:
        """Write the ledger's row of the step that led to `state`, on rank 0."""
        if self.topology.rank == 0:
            samples = phase_at(self.run, state.step - 1).sequences_per_step
            first_sample = state.next_sample - samples
            version = self.batches.plan.version_at(first_sample)
            self.ledger.append(state.step, version, first_sample, samples, tokens_hash)


def open_job(
    run: RunConfig, topology: Topology, checkpoint: Path | None = None, progress: RankProgress | None = None
) -> Job:
    """Open tokenizer and data, build the model with its initial weights, and build the optimizer.

    With a `checkpoint`, the weights are not initialized: `resuming.restore` must load them before the model computes.
    """
    fault_point("setup.open")
    inputs = open_inputs(run, checkpoint)
    directory = RunDirectory(Path(run.output))
    model_chunks = decoder.build(run, topology)
    if checkpoint is None:
        decoder.load_weights(model_chunks, run.model, topology, _initial_weights(run, topology))
    reduced = gradients.wrap_data_parallel(run, model_chunks, topology.data_size)
    return Job(
        run=run,
        topology=topology,
        directory=directory,
        tokenizer=inputs.tokenizer,
        batches=inputs.batches,
        model_chunks=reduced,
        optimizer=gradients.build(run, reduced),
        start=inputs.state,
        ledger=Ledger(directory.ledger),
        progress=progress or RankProgress(),
    )


def _initial_weights(run: RunConfig, topology: Topology) -> decoder.WeightSource:
    if run.model.initial_weights is None:
        return decoder.WeightsFromSeed(run.model, run.seed)
    weights = open_weights(Path(run.model.initial_weights), topology.rank, topology.world_size)
    check_same_model(weights.model, run.model)
    return weights
