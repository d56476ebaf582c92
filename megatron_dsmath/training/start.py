"""From a run file to ranks: what is checked before any process starts, and how each rank ends."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from megatron_dsmath.config import dump, load
from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.errors import (
    EXIT_DONE,
    EXIT_INTERNAL,
    EXIT_REFUSED,
    EXIT_STOPPED,
    DsmathError,
    UsageError,
    show,
)
from megatron_dsmath.training.inputs import open_inputs
from megatron_dsmath.training.local_ranks import end_with_parent, run_ranks
from megatron_dsmath.training.run_directory import RunDirectory, Status

_STATES: dict[int, Status] = {EXIT_DONE: "done", EXIT_STOPPED: "stopped", EXIT_REFUSED: "refused"}


def check(path: str, overrides: Sequence[str], world_size: int | None) -> RunConfig:
    """Everything that can be known to be wrong without torch and without a second process."""
    run = load(path, overrides, world_size)
    open_inputs(run)
    RunDirectory(Path(run.output)).create()
    return run


def start(path: str, overrides: Sequence[str], ranks: int | None) -> int:
    """`dsmath train`: join the world this process was started in, or start `ranks` of its own; returns an exit code."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if ranks is not None and "RANK" in os.environ:
        raise UsageError(
            "--nproc starts a world, and this process is in one already",
            where="--nproc",
            found=f"RANK={os.environ['RANK']} in the environment",
            fix="leave --nproc away under torchrun or srun",
        )
    if ranks is not None and ranks > 1:
        check(path, overrides, ranks)
        return run_ranks(["train", path, *(f"--set={assignment}" for assignment in overrides)], ranks)
    return _be_a_rank(load(path, overrides, world_size))


def _be_a_rank(run: RunConfig) -> int:
    directory, rank = RunDirectory(Path(run.output)), int(os.environ.get("RANK", "0"))
    step, message = 0, ""
    end_with_parent()
    try:
        if rank == 0:
            directory.create()
            directory.resolved_config.write_text(dump(run), encoding="utf-8")
            directory.say("running", None, 0)
        from megatron_dsmath.training.train import train

        step = train(run).step
        code = EXIT_DONE
    except DsmathError as error:
        code, message = show(error), error.what
    except Exception as error:
        traceback.print_exc()
        code, message = EXIT_INTERNAL, f"{type(error).__name__}: {error}"
    if rank == 0:
        _say_how_it_ended(directory, code, step, message)
    sys.stdout.flush()
    sys.stderr.flush()
    if code in (EXIT_DONE, EXIT_STOPPED):
        from megatron_dsmath.parallel import topology

        topology.stop()
        return code
    os._exit(code)  # the other ranks may wait for us in a collective; leaving the groups in order would wait for them


def _say_how_it_ended(directory: RunDirectory, code: int, step: int, message: str) -> None:
    try:
        directory.say(_STATES.get(code, "failed"), code, step or directory.last_step(), message)
    except OSError as error:
        print(f"{directory.status} could not be written: {error}", file=sys.stderr)
