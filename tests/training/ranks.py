"""What the ranks of these tests do: train, die at a step, be asked to stop at one; and what they leave behind."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from megatron_dsmath.config.sections import RunConfig

Row = dict[str, Any]
WALL_TIME = {
    *("step_seconds", "tokens_per_second", "mfu"),
    *("goodput", "restarts", "lost_steps", "save_seconds", "failed_saves"),
}

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "one process, bf16": (1, {"precision": "bf16"}),
    "tensor 2 with sequence": (2, {"parallel__tensor": 2, "parallel__sequence": True}),
    "pipeline 2": (2, {"parallel__pipeline": 2}),
    "data 2": (2, {}),
}


class Ending(NamedTuple):
    """How `dsmath` ended in one rank."""

    code: int
    out: str
    err: str


def train_run(run: RunConfig) -> None:
    """The loop itself, without the command line around it."""
    from megatron_dsmath.training.run_directory import RunDirectory
    from megatron_dsmath.training.train import train

    gc.freeze()  # megatron-core collects garbage at each save, and need not go through all that was imported
    RunDirectory(Path(run.output)).create()
    train(run, lambda: False)


def train_until_killed(run: RunConfig, after_step: int) -> None:
    """The same; SIGKILL comes once the row of `after_step` is in metrics.jsonl, and what was due before is saved."""
    _after(after_step, lambda: os.kill(os.getpid(), signal.SIGKILL))
    train_run(run.model_copy(update={"checkpoint": run.checkpoint.model_copy(update={"asynchronous": False})}))


def dsmath(arguments: list[str], signal_after: tuple[int, int, int] | None = None) -> Ending:
    """The command in this rank. `signal_after`: the signal that a rank sends itself, the rank, and after which step."""
    from megatron_dsmath import cli

    gc.freeze()
    if signal_after is not None and signal_after[1] == int(os.environ["RANK"]):
        number, _, step = signal_after
        _after(step, lambda: os.kill(os.getpid(), number))
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _exit_as_exception():
        try:
            code = cli.main(arguments)
        except SystemExit as exit_:
            code = int(str(exit_.code))
    return Ending(code, out.getvalue(), err.getvalue())


def with_fault(fault: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """`function` in this rank, with the fault that DSMATH_FAULT would inject (`megatron_dsmath.fault_injection`)."""
    os.environ["DSMATH_FAULT"] = fault
    return function(*arguments)


def _after(step: int, act: Callable[[], None]) -> None:
    """Act once the row of `step` is written; step 0 is when the run says that it starts."""
    from megatron_dsmath.training.run_directory import RunDirectory
    from megatron_dsmath.training.tracking import Tracker

    log, write_status = Tracker.log, RunDirectory.write_status

    def logged(self: Tracker, row: Row) -> None:
        log(self, row)
        if row["step"] == step:
            act()

    def said(self: RunDirectory, *status: Any, **more: Any) -> None:
        write_status(self, *status, **more)
        if step == 0:
            act()

    Tracker.log, RunDirectory.write_status = logged, said  # type: ignore[method-assign]


@contextlib.contextmanager
def _exit_as_exception() -> Any:
    """A rank that gives up leaves at once; here its last words are still to be carried home."""

    def leave(code: int) -> None:
        raise SystemExit(code)

    exit_at_once, os._exit = os._exit, leave  # type: ignore[assignment]
    try:
        yield
    finally:
        os._exit = exit_at_once


def rows_of(directory: Path) -> list[Row]:
    """metrics.jsonl."""
    return read_rows(directory / "metrics.jsonl")


def read_rows(file: Path) -> list[Row]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def numbers_of(rows: list[Row]) -> list[Row]:
    """The rows without what depends on the machine's load: equal numbers are equal bits, JSON has them all."""
    return [{name: value for name, value in row.items() if name not in WALL_TIME} for row in rows]


def status_of(directory: Path) -> Row:
    """STATUS.json."""
    status: Row = json.loads((directory / "STATUS.json").read_text(encoding="utf-8"))
    return status
