"""From a run file to ranks: what is checked before any process starts, and how each rank ends."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_dsmath.checkpoint.store import newest_checkpoint
from megatron_dsmath.config import load
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
from megatron_dsmath.training.run_directory import RunDirectory, Status

if TYPE_CHECKING:
    from megatron_dsmath.training.evaluating import Evaluation

_STATES: dict[int, Status] = {EXIT_DONE: "done", EXIT_STOPPED: "stopped", EXIT_REFUSED: "refused"}


def check_run(path: str, overrides: Sequence[str], world_size: int | None) -> RunConfig:
    """Everything that can be known to be wrong without torch and without a second process."""
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
    """`dsmath train`: join the world this process was started in, or start `ranks` of its own; returns an exit code."""
    if ranks is not None:
        _require_startable(ranks)
    if ranks is not None and ranks > 1:
        directory = RunDirectory(Path(check_run(path, overrides, ranks).output))
        with hold_run(directory):
            flags = [*(f"--set={assignment}" for assignment in overrides), f"--resume={resume}"]
            flags += evaluation.flags if evaluation else ()
            code = run_ranks(["train", path, *flags], ranks)
            if directory.state() == "running":  # a rank that was killed could not say how it ended
                write_final_status(directory, code, "the processes were killed")
        return code
    read = load if "RANK" in os.environ else check_run  # of a world, whoever started it has checked
    return run_rank(read(path, overrides, _world_size()), resume, evaluation)


def _world_size() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


def _require_startable(ranks: int) -> None:
    if "RANK" in os.environ:
        raise UsageError(
            "--nproc starts a world, and this process is in one already",
            where="--nproc",
            found=f"RANK={os.environ['RANK']} in the environment",
            fix="leave --nproc away under torchrun or srun",
        )
    if ranks < 1:
        raise UsageError("the number of processes is wrong", where="--nproc", found=ranks, expected="1 or more")


def run_rank(run: RunConfig, resume: Resume, evaluation: Evaluation | None) -> int:
    """Train on this rank; returns the exit code."""
    stop = StopRequest()
    stop.listen()  # a signal is not lost in the seconds in which torch is imported
    if PARENT in os.environ:
        end_with_parent(int(os.environ[PARENT]))
    directory, rank = RunDirectory(Path(run.output)), int(os.environ.get("RANK", "0"))
    is_owner = rank == 0 and PARENT not in os.environ  # else the process that started the ranks is
    with hold_run(directory) if is_owner else nullcontext():
        code = _train_and_say(run, stop, resume, evaluation, directory, rank)
    sys.stdout.flush()
    sys.stderr.flush()
    if _world_size() > 1:
        os._exit(code)  # the others may wait for us in a collective; leaving the groups in order would wait for them
    return code


def _train_and_say(
    run: RunConfig, stop: StopRequest, resume: Resume, evaluation: Evaluation | None, directory: RunDirectory, rank: int
) -> int:
    """Take part, and say once for all ranks how it ended; returns the exit code."""
    watchdog = Watchdog(run.guard, directory, rank, _world_size())
    try:
        with report_out_of_memory(run, rank, _world_size()):
            return _take_part(run, stop, resume, evaluation, directory, rank, watchdog)
    except DsmathError as error:
        watchdog.stop()
        code = error.exit_code
        if _is_first_to_fail():
            show(error)
            write_final_status(directory, code, error.what)
    except BaseException as error:  # some of torch's are no Exception
        watchdog.stop()
        code, message = EXIT_INTERNAL, f"{type(error).__name__}: {error}"
        if _is_first_to_fail():
            traceback.print_exc()
            write_final_status(directory, code, message)
        else:
            print(f"rank {rank} ends because another rank failed ({message.splitlines()[0]})", file=sys.stderr)
    return code


def _take_part(
    run: RunConfig,
    stop: StopRequest,
    resume: Resume,
    evaluation: Evaluation | None,
    directory: RunDirectory,
    rank: int,
    watchdog: Watchdog,
) -> int:
    """Train until the run is done or all ranks agree to stop."""
    if rank == 0:
        with suppress(CheckpointError):  # refused once the others, who would wait for this rank, have joined
            begin_attempt(directory, newest_checkpoint(directory.root))
        directory.write_status("running", None, directory.last_step())
    watchdog.start()
    from megatron_dsmath.parallel import collectives
    from megatron_dsmath.parallel.topology import destroy_topology
    from megatron_dsmath.training.train import train

    code, message = EXIT_DONE, ""
    state = train(run, lambda: stop.made, resume, evaluation)
    if state.step < run.schedule.steps:
        stopped = StoppedOnRequest(
            "the run was asked to stop",
            where=run.output,
            found=stop.signal or "a signal to another rank",
            fix=f"run it again: it continues after step {state.step}",
        )
        code, message = stopped.exit_code, stopped.what
        if rank == 0:
            show(stopped)
    if rank == 0:
        write_final_status(directory, code, message)
    collectives.barrier()  # the first rank that leaves with 75 makes torchrun end the others
    watchdog.stop()
    destroy_topology()
    return code


def _is_first_to_fail() -> bool:
    """Whether this rank is to say what went wrong: one rank's mistake makes the others fail, or is theirs as well."""
    if _world_size() == 1:
        return True
    import torch.distributed as dist

    if not dist.is_initialized():
        return True
    try:
        return dist.distributed_c10d._get_default_store().add("dsmath/failures", 1) == 1
    except Exception:  # the store ended with the rank that kept it
        return False


def write_final_status(directory: RunDirectory, code: int, message: str) -> None:
    """Write into STATUS.json how the run ended; print why it cannot be written."""
    try:
        goodput = Goodput.of(directory).facts()
        directory.write_status(_STATES.get(code, "failed"), code, directory.last_step(), message, **goodput)
    except OutputError as error:
        print(f"{directory.status} could not be written: {error.found}", file=sys.stderr)
