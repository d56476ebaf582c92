"""Runs the stages of a recipe on this machine, each as the command that a user would start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from types import FrameType

from megatron_dsmath.config.layout_contradictions import world_contradictions
from megatron_dsmath.errors import (
    EXIT_DONE,
    EXIT_INTERNAL,
    EXIT_REFUSED,
    EXIT_STOPPED,
    DsmathError,
    InternalError,
    OutputError,
    StoppedOnRequest,
    UsageError,
    raise_all,
)
from megatron_dsmath.files.processes import end_with_parent, handle_stop_signals
from megatron_dsmath.recipe.recipe_file import TrainSection
from megatron_dsmath.recipe.recipe_stages import Stage
from megatron_dsmath.recipe.stage_states import stage_states


def run_stages(stages: Sequence[Stage]) -> int:
    """Run every stage that is not done, in order; returns the exit code of the first that fails, or 0.

    A stage that was begun continues. A stop signal is forwarded to the stage as SIGTERM; the next stage is not started.
    Raises an error, or Refusals, before the first stage where one cannot run, StoppedOnRequest after a signal, and
    InternalError for a stage that ends without its output.
    """
    _refuse(stages)
    stop = _Stop()
    handle_stop_signals(stop.remember)
    for stage in stages:
        if stage_states(stages)[stage.name].status == "done":
            print(f"recipe: {stage.name}: done", flush=True)
            continue
        if stop.signal is not None:
            raise _stopped(stage, stop)
        print(f"recipe: {stage.name}: dsmath {' '.join(stage.local_arguments)}", flush=True)
        code = _run(stage.local_arguments, stop)
        if code == EXIT_STOPPED or (code < 0 and stop.signal is not None):
            raise _stopped(stage, stop)
        if code in (EXIT_INTERNAL, EXIT_REFUSED):
            print(f"recipe: {stage.name}: exit code {code}", file=sys.stderr)
            return code
        state = stage_states(stages)[stage.name]
        if code != EXIT_DONE or state.status != "done":
            raise InternalError(
                "a stage ended without its output",
                where=stage.name,
                found=f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}; {state}",
                expected=f"exit code {EXIT_DONE}, and {stage.output}",
                fix="see the messages above; the same command continues it",
            )
    return EXIT_DONE


class _Stop:
    """The signal that asked the recipe to stop."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name


def _run(arguments: Sequence[str], stop: _Stop) -> int:
    """Run `dsmath ARGUMENTS` to its end; returns its exit code. It dies with this process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_dsmath", *arguments],
        start_new_session=True,  # Ctrl-C reaches it once, through this process
        preexec_fn=partial(end_with_parent, os.getpid()),
    )
    is_forwarded = False
    while process.poll() is None:
        if stop.signal is not None and not is_forwarded:
            process.send_signal(signal.SIGTERM)  # a run saves its state; the other commands end
            is_forwarded = True
        time.sleep(0.05)
    return int(process.returncode)


def _stopped(stage: Stage, stop: _Stop) -> StoppedOnRequest:
    return StoppedOnRequest(
        "the recipe was asked to stop",
        where=stage.name,
        found=stop.signal or "a signal to the stage",
        fix="run it again: it continues with this stage",
    )


def _refuse(stages: Sequence[Stage]) -> None:
    """Raise the reasons for which a stage that is not done cannot run on this machine."""
    errors: list[DsmathError] = []
    states = stage_states(stages)
    for stage in stages:
        state = states[stage.name]
        if state.status == "out of date":
            errors.append(
                OutputError(
                    f"the output of the stage {stage.name} is out of date",
                    where=stage.output,
                    found=state.detail,
                    expected="an output of this recipe and of the present outputs of earlier stages",
                    fix="move it to another place to make it again, or change the recipe",
                )
            )
        if state.status == "missing":
            errors += [
                UsageError(f"an input of the stage {stage.name} is missing", where=path, fix="copy or make it first")
                for path in state.missing
            ]
        if isinstance(stage.section, TrainSection) and stage.run is not None and state.status != "done":
            errors += world_contradictions(stage.run, stage.section.nproc or 1)
    raise_all(errors)
