"""A checkpoint back into a run, on all ranks together."""

from __future__ import annotations

from pathlib import Path

from megatron_dsmath.checkpoint import store
from megatron_dsmath.checkpoint.manifest import Manifest
from megatron_dsmath.checkpoint.weights import check_same_model
from megatron_dsmath.config import RunConfig, dump
from megatron_dsmath.errors import CheckpointError
from megatron_dsmath.parallel import shards
from megatron_dsmath.parallel.collectives import from_first_rank
from megatron_dsmath.parallel.topology import Topology
from megatron_dsmath.training.checkpointing import SHARDS, layout
from megatron_dsmath.training.inputs import newest_checkpoint
from megatron_dsmath.training.job import Job
from megatron_dsmath.training.machine import differences, machine
from megatron_dsmath.training.run_directory import keep_rows_until, replace_text
from megatron_dsmath.training.state import State


def newest(run: RunConfig, topology: Topology) -> Path | None:
    """The newest whole checkpoint of the run, on every rank; None where it never saved."""
    found: Path | None = from_first_rank(newest_checkpoint(run) if topology.rank == 0 else None)
    return found


def restore(job: Job, checkpoint: Path | None) -> State:
    """That checkpoint into the job, or a start at step 0; the run's directory then tells of no step beyond."""
    state = job.start
    manifest = None if checkpoint is None else _load(job, checkpoint)
    if job.topology.rank == 0:
        logs, starts = job.directory.logs, job.directory.starts()
        replace_text(job.directory.resolved_config, dump(job.run))
        moved = keep_rows_until(job.directory.metrics, state.step, logs / f"metrics_before_start_{starts}.jsonl")
        keep_rows_until(job.ledger.steps_file, state.step, logs / f"ledger_before_start_{starts}.jsonl")
        job.ledger.write_plan(job.batches.plan)
        job.directory.log_start(step=state.step, world_size=job.topology.world_size, rows_done_again=moved)
        if manifest is not None:
            print(f"continuing after step {state.step} from {checkpoint}{_reservation(job, manifest)}", flush=True)
    return state


def _reservation(job: Job, manifest: Manifest) -> str:
    """What keeps the run from going on bit for bit as if it had never stopped; nothing where all is the same."""
    before = {**manifest.layout, **manifest.machine, "precision": manifest.precision}
    now = {**layout(job), **machine(job.topology), "precision": job.run.precision}
    found = differences(before, now)
    return f"; not bitwise: {', '.join(found)}" if found else ""


def _load(job: Job, folder: Path) -> Manifest:
    manifest = store.verify(folder, job.topology.rank, job.topology.world_size)
    check_same_model(manifest.model, job.run.model, where=folder)
    kinds = (manifest.layout["distributed_optimizer"], job.run.parallel.distributed_optimizer)
    if kinds[0] != kinds[1]:
        raise CheckpointError(
            "the optimizer's state was saved in another form",
            where=folder,
            found=f"parallel.distributed_optimizer {kinds[0]}",
            expected=f"{kinds[1]}, as the run file has it",
            fix=f"set parallel.distributed_optimizer: {str(kinds[0]).lower()}",
        )
    if not kinds[0] and manifest.precision != job.run.precision:  # the distributed one keeps fp32 in either
        raise CheckpointError(
            "the optimizer's state was saved in another precision",
            where=folder,
            found=f"precision {manifest.precision}",
            expected=f"{job.run.precision}, as the run file has it",
            fix=f"set precision: {manifest.precision}, or name this run under model.initial_weights of a new one",
        )
    shards.load(folder / SHARDS, job.pieces, job.optimizer)
    return manifest
