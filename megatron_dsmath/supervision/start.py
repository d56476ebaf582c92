"""`dsmath train`: check the run, start its ranks, train on each rank, and report how the run ended.

What a rank does at SIGTERM is described in `stop_request`.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_dsmath.checkpoint.store import newest_checkpoint
from megatron_dsmath.config import load
from megatron_dsmath.config.phases import total_steps
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.errors import (
    EXIT_DONE,
    EXIT_INTERNAL,
    EXIT_REFUSED,
    EXIT_STOPPED,
    CheckpointError,
    DsmathError,
    OutputError,
    StoppedOnRequest,
    UsageError,
    show,
)
from megatron_dsmath.files.processes import end_with_parent
from megatron_dsmath.supervision.attempts import begin_attempt, require_progress
from megatron_dsmath.supervision.local_ranks import PARENT, run_ranks
from megatron_dsmath.supervision.lock import hold_run, require_free
from megatron_dsmath.supervision.out_of_memory import report_out_of_memory
from megatron_dsmath.supervision.stop_request import StopRequest
from megatron_dsmath.supervision.watchdog import Watchdog
from megatron_dsmath.training.goodput import Goodput
from megatron_dsmath.training.inputs import Resume, open_inputs, require_room
from megatron_dsmath.training.rank_progress import RankProgress
from megatron_dsmath.training.run_directory import RunDirectory, Status

if TYPE_CHECKING:
    from megatron_dsmath.training.evaluating import Evaluation

_STATES: dict[int, Status] = {EXIT_DONE: "done", EXIT_STOPPED: "stopped", EXIT_REFUSED: "refused"}


def check_run(path: str, overrides: Sequence[str], world_size: int | None) -> RunConfig:
    """Load the run file, check all that needs neither torch nor a second process, and create the run's directory."""
    run = load(path, overrides, world_size)
    directory, checkpoint = RunDirectory(Path(run.output)), newest_checkpoint(Path(run.output))
    require_free(directory)
    open_inputs(run, checkpoint)
    require_progress(directory, checkpoint)
    require_room(run)
    directory.create()
    return run


def start_run(
    path: str,
    overrides: Sequence[str],
    ranks: int | None,
    resume: Resume = "newest",
    evaluation: Evaluation | None = None,
) -> int:
    """Train in the world that this process was started in, or start `ranks` local ranks; returns the exit code."""
    if ranks is not None and "RANK" in os.environ:
        raise UsageError(
            "--nproc starts processes, but this process was itself started as a rank",
            where="--nproc",
            found=f"RANK={os.environ['RANK']} in the environment",
            fix="remove --nproc: torchrun or srun starts the processes",
        )
    if ranks is not None and ranks < 1:
        raise UsageError("the number of processes is wrong", where="--nproc", found=ranks, expected="1 or more")
    if ranks is not None and ranks > 1:
        directory = RunDirectory(Path(check_run(path, overrides, ranks).output))
        with hold_run(directory):
            flags = [*(f"--set={assignment}" for assignment in overrides), f"--resume={resume}"]
            flags += evaluation.flags if evaluation else ()
            code = run_ranks(["train", path, *flags], ranks)
            if directory.state() == "running":  # a killed rank cannot write it
                write_final_status(directory, code, "the processes were killed")
        return code
    rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    read = load if "RANK" in os.environ else check_run  # the launcher of a world has checked the run
    run = read(path, overrides, world_size)
    return run_rank(RankStart(run, resume, evaluation, RunDirectory(Path(run.output)), rank, world_size))


@dataclass(frozen=True)
class RankStart:
    """The run, the rank and the settings of one process."""

    run: RunConfig
    resume: Resume
    evaluation: Evaluation | None
    directory: RunDirectory
    rank: int
    world_size: int
    stop: StopRequest = field(default_factory=StopRequest)
    progress: RankProgress = field(default_factory=RankProgress)


def run_rank(start: RankStart) -> int:
    """Train on this rank until the run is done, is stopped or fails; returns the exit code."""
    start.stop.listen()  # before torch is imported, which takes seconds: no signal is lost
    if PARENT in os.environ:
        end_with_parent(int(os.environ[PARENT]))
    is_owner = start.rank == 0 and PARENT not in os.environ  # else the process that started the ranks holds the lock
    with hold_run(start.directory) if is_owner else nullcontext():
        code = _train_and_report(start)
    sys.stdout.flush()
    sys.stderr.flush()
    if start.world_size > 1:
        os._exit(code)  # an orderly exit waits for ranks that may wait for this one in a collective
    return code


def _train_and_report(start: RankStart) -> int:
    """Train; report an error once for all ranks, on stderr and in STATUS.json; returns the exit code."""
    watchdog = Watchdog(start.run.guard, start.directory, start.progress, start.rank, start.world_size)
    try:
        with report_out_of_memory(start.run, start.progress, start.rank, start.world_size):
            return _train(start, watchdog)
    except DsmathError as error:
        watchdog.stop()
        code = error.exit_code
        if _is_first_to_fail(start.world_size):
            show(error)
            write_final_status(start.directory, code, error.what)
    except BaseException as error:  # some errors of torch are no Exception
        watchdog.stop()
        code, message = EXIT_INTERNAL, f"{type(error).__name__}: {error}"
        if _is_first_to_fail(start.world_size):
            traceback.print_exc()
            write_final_status(start.directory, code, message)
        else:
            print(f"rank {start.rank} ends because another rank failed ({message.splitlines()[0]})", file=sys.stderr)
    return code


def _train(start: RankStart, watchdog: Watchdog) -> int:
    """Train until the run is done or all ranks agree to stop; returns the exit code."""
    run, directory = start.run, start.directory
    if start.rank == 0:
        with suppress(CheckpointError):  # raised again once all ranks have joined: the others wait for this one
            begin_attempt(directory, newest_checkpoint(directory.root))
        directory.write_status("running", None, directory.last_step())
    watchdog.start()
    from megatron_dsmath.parallel import collectives
    from megatron_dsmath.parallel.topology import destroy_topology
    from megatron_dsmath.training.train import train

    code, message = EXIT_DONE, ""
    state = train(run, lambda: start.stop.made, start.resume, start.evaluation, start.progress)
    if state.step < total_steps(run):
        stopped = StoppedOnRequest(
            "the run was asked to stop",
            where=run.output,
            found=start.stop.signal or "a signal to another rank",
            fix=f"run it again: it continues after step {state.step}",
        )
        code, message = stopped.exit_code, stopped.what
        if start.rank == 0:
            show(stopped)
    if start.rank == 0:
        write_final_status(directory, code, message)
    collectives.barrier()  # torchrun ends the other ranks as soon as one exits with 75
    watchdog.stop()
    destroy_topology()
    return code


def _is_first_to_fail(world_size: int) -> bool:
    """Whether this rank reports the error: it is the first to fail, and its error makes the other ranks fail."""
    if world_size == 1:
        return True
    import torch.distributed as dist

    if not dist.is_initialized():
        return True
    try:
        return dist.distributed_c10d._get_default_store().add("dsmath/failures", 1) == 1
    except Exception:  # the store ended with the rank that held it
        return False


def write_final_status(directory: RunDirectory, code: int, message: str) -> None:
    """Write into STATUS.json how the run ended; print why it cannot be written."""
    try:
        goodput = Goodput.of(directory).facts()
        directory.write_status(_STATES.get(code, "failed"), code, directory.last_step(), message, **goodput)
    except OutputError as error:
        print(f"{directory.status} could not be written: {error.found}", file=sys.stderr)
