"""Selects the checkpoint from which a run continues, and loads it, on all ranks together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from megatron_dsmath.checkpoint import store
from megatron_dsmath.checkpoint.checkpoint_weights import SHARDS_FOLDER
from megatron_dsmath.checkpoint.manifest import Manifest, check_same_model
from megatron_dsmath.config import RunConfig, dump
from megatron_dsmath.errors import CheckpointError
from megatron_dsmath.files.atomic_files import replace_text
from megatron_dsmath.parallel import shards
from megatron_dsmath.parallel.collectives import broadcast_object, gather_objects
from megatron_dsmath.parallel.topology import Topology
from megatron_dsmath.training.checkpointing import layout, machine
from megatron_dsmath.training.inputs import Resume
from megatron_dsmath.training.job import Job
from megatron_dsmath.training.run_directory import keep_rows_until
from megatron_dsmath.training.state import State


def choose_checkpoint(run: RunConfig, topology: Topology, resume: Resume = "newest") -> Path | None:
    """The checkpoint to resume from, on every rank; None if the run has never saved.

    With `newest` a checkpoint is complete if its manifest is valid. With `last-good` all its files must match the
    manifest, and newer checkpoints are set aside. Rank 0 prints which newer checkpoints are damaged. Raises
    CheckpointError on all ranks if all are damaged: a run must not start from scratch over its checkpoints.
    """

    def check(folder: Path) -> Manifest:
        if resume == "last-good":
            return _verified(folder, topology)
        return _on_all(topology, store.read_step_manifest, folder)

    folders: list[Path] = broadcast_object(store.step_folders(Path(run.output)) if topology.rank == 0 else None)
    checkpoint, damaged = store.find_newest(folders, check)
    if topology.rank == 0:
        for folder, problem in damaged.items():
            action = f"set aside as {store.set_aside(folder).name}" if resume == "last-good" else "not used"
            print(f"{folder} is {action}: {problem.what} ({problem.where}: {problem.found})", flush=True)
    return checkpoint


def restore(job: Job, checkpoint: Path | None) -> State:
    """Load the checkpoint, if there is one; returns the state, and removes later steps from the run's directory."""
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
            print(f"continuing after step {state.step} from {checkpoint}{_resume_note(job, manifest)}", flush=True)
    return state


def _resume_note(job: Job, manifest: Manifest) -> str:
    """The differences that prevent a bitwise equal continuation, as `threads 2 then, 1 now`; empty without any."""

    def text(value: Any) -> str:
        return "unknown" if value is None else str(value)

    before = {**manifest.layout, **manifest.machine, "precision": manifest.precision}
    now = {**layout(job), **machine(job.topology), "precision": job.run.precision}
    changed = [name for name in now if before.get(name) != now[name]]
    differences = [f"{name} {text(before.get(name))} then, {text(now[name])} now" for name in changed]
    return f"; not bitwise: {', '.join(differences)}" if differences else ""


def _load(job: Job, folder: Path) -> Manifest:
    manifest = _verified(folder, job.topology)
    check_same_model(manifest.model, job.run.model, where=folder)
    kinds = (manifest.layout["distributed_optimizer"], job.run.parallel.distributed_optimizer)
    if kinds[0] != kinds[1]:
        raise CheckpointError(
            "the optimizer's state was saved in another form",
            where=folder,
            found=f"parallel.distributed_optimizer {kinds[0]}",
            expected=f"{kinds[1]}, as in the run file",
            fix=f"set parallel.distributed_optimizer: {str(kinds[0]).lower()}",
        )
    if not kinds[0] and manifest.precision != job.run.precision:  # the distributed one keeps fp32 in either
        raise CheckpointError(
            "the optimizer's state was saved in another precision",
            where=folder,
            found=f"precision {manifest.precision}",
            expected=f"{job.run.precision}, as in the run file",
            fix=f"set precision: {manifest.precision}, or start a new run with model.initial_weights set to this run",
        )
    shards.load(folder / SHARDS_FOLDER, job.model_chunks, job.optimizer)
    return manifest


def _verified(folder: Path, topology: Topology) -> Manifest:
    """The manifest of a checkpoint after all its files are verified; each rank reads its share of them."""
    try:
        return _on_all(topology, store.verify, folder, topology.rank, topology.world_size)
    except CheckpointError as error:
        error.fix = (
            "copy the file again from its source, or continue from the newest undamaged checkpoint: --resume last-good"
        )
        raise


def _on_all(topology: Topology, read: Callable[..., Manifest], *arguments: object) -> Manifest:
    """Return what `read` returns; raise a CheckpointError on all ranks if `read` raises it on one."""
    manifest, own_error = None, None
    try:
        manifest = read(*arguments)
    except CheckpointError as error:
        own_error = error
    for error_of_rank in gather_objects(own_error, topology):
        if error_of_rank is not None:
            raise error_of_rank
    assert manifest is not None
    return manifest
