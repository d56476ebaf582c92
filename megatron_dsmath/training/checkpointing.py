"""A run's state to a checkpoint and back, on all ranks together."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.distributed.checkpoint.api import CheckpointException

from megatron_dsmath.checkpoint import store, whole_directory
from megatron_dsmath.checkpoint.manifest import FileEntry, Manifest
from megatron_dsmath.checkpoint.weights import check_same_model
from megatron_dsmath.config import RunConfig, dump
from megatron_dsmath.data.atomic_files import cannot_write
from megatron_dsmath.errors import CheckpointError
from megatron_dsmath.parallel import shards
from megatron_dsmath.parallel.collectives import any_rank, barrier, from_first_rank, gather
from megatron_dsmath.parallel.optimizer import parameters_in_place
from megatron_dsmath.parallel.topology import Topology
from megatron_dsmath.training.inputs import newest_checkpoint
from megatron_dsmath.training.job import Job
from megatron_dsmath.training.run_directory import keep_rows_until, replace_text
from megatron_dsmath.training.state import State

SHARDS, TOKENIZER = "shards", "tokenizer"
STATE_BYTES_PER_PARAMETER = 16  # at most: the weight, its fp32 copy and two moments


def is_due(job: Job, state: State) -> bool:
    """Whether the state after this step is to be saved; all ranks agree."""
    settings = job.run.checkpoint
    if state.step == job.run.schedule.steps:
        return True
    if settings.every_steps and state.step % settings.every_steps == 0:
        return True
    if not settings.every_minutes:
        return False
    return any_rank(time.monotonic() - job.last_save_time > 60 * settings.every_minutes, job.topology)


def save(job: Job, state: State) -> None:
    """Write `checkpoints/step_N`: it is there once it is whole, and older ones go only then."""
    root, first = job.directory.checkpoints, job.topology.rank == 0
    folder = Path(from_first_rank(str(_begin(job, root, state)) if first else ""))
    with _discarded_on_failure(folder, first):
        with parameters_in_place(job.pieces):
            shards.save(folder / SHARDS, job.pieces, job.optimizer)
        parts = gather(store.hashes(folder, job.topology.rank, job.topology.world_size), job.topology)
        if first:
            job.ledger.sync()
            files = {name: entry for part in parts for name, entry in part.items()}
            store.publish(folder, _manifest(job, state, files))
            store.prune(root, job.run.checkpoint.keep)
    barrier()
    job.last_save_time = time.monotonic()


def newest(run: RunConfig, topology: Topology) -> Path | None:
    """The newest whole checkpoint of the run, on every rank; None where it never saved."""
    found: Path | None = from_first_rank(newest_checkpoint(run) if topology.rank == 0 else None)
    return found


def restore(job: Job, checkpoint: Path | None) -> State:
    """That checkpoint into the job, or a start at step 0; the run's directory then tells of no step beyond."""
    state = job.start
    if checkpoint is not None:
        _load(job, checkpoint)
    if job.topology.rank == 0:
        logs, starts = job.directory.logs, job.directory.starts()
        replace_text(job.directory.resolved_config, dump(job.run))
        moved = keep_rows_until(job.directory.metrics, state.step, logs / f"metrics_before_start_{starts}.jsonl")
        keep_rows_until(job.ledger.steps_file, state.step, logs / f"ledger_before_start_{starts}.jsonl")
        job.ledger.write_plan(job.batches.plan)
        job.directory.log_start(step=state.step, world_size=job.topology.world_size, rows_done_again=moved)
        if checkpoint is not None:
            print(f"continuing after step {state.step} from {checkpoint}", flush=True)
    return state


def _begin(job: Job, root: Path, state: State) -> Path:
    store.preflight(root, job.run.model.parameters * STATE_BYTES_PER_PARAMETER)
    folder = store.begin(root, state.step)
    with _discarded_on_failure(folder, first=True):
        (folder / SHARDS).mkdir()
        (folder / TOKENIZER).mkdir()
        for file in job.tokenizer.files:
            shutil.copyfile(file, folder / TOKENIZER / file.name)
    return folder


@contextmanager
def _discarded_on_failure(folder: Path, first: bool) -> Iterator[None]:
    """Leave nothing of a checkpoint that cannot be finished; raise OutputError where the system refused to write."""
    try:
        yield
    except BaseException as error:
        if first:
            whole_directory.discard(folder)
        refusal = _system_refusal(error)
        if refusal is None:
            raise
        raise cannot_write(folder, refusal) from error


def _system_refusal(error: BaseException) -> OSError | None:
    # torch gathers what failed on any rank into one error, which is no Exception.
    causes = [cause for cause, _ in error.failures.values()] if isinstance(error, CheckpointException) else [error]
    for cause in causes:
        if isinstance(cause, OSError):
            return cause
        if "inline_container.cc" in str(cause):  # torch's archive writer does not pass on why it could not write
            return OSError("a file could not be finished")
    return None


def _load(job: Job, folder: Path) -> None:
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


def _manifest(job: Job, state: State, files: dict[str, FileEntry]) -> Manifest:
    run, topology = job.run, job.topology
    return Manifest(
        kind="training",
        step=state.step,
        next_sample=state.next_sample,
        consumed_tokens=state.consumed_tokens,
        model=run.model,
        layout={**run.parallel.model_dump(mode="json"), "world_size": topology.world_size},
        precision=run.precision,
        tokenizer_fingerprint=job.tokenizer.fingerprint,
        state=state.as_dict(),
        files=files,
    )
