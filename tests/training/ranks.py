"""What the ranks of these tests run, and the files that they leave."""

from __future__ import annotations

import contextlib
import gc
import io
import json
import os
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
    other_faults = os.environ.get("DSMATH_FAULT", "")
    run = run.model_copy(update={"checkpoint": run.checkpoint.model_copy(update={"asynchronous": False})})
    with_fault(f"{other_faults} kill:step.logged:step={after_step}", train_run, run)


def dsmath(arguments: list[str]) -> Ending:
    """The command in this rank."""
    from megatron_dsmath import cli

    gc.freeze()
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _exit_as_exception():
        try:
            code = cli.main(arguments)
        except SystemExit as exit_:
            code = int(str(exit_.code))
    return Ending(code, out.getvalue(), err.getvalue())


def with_fault(fault: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Call the function in this rank with the faults of DSMATH_FAULT (`megatron_dsmath.fault_injection`)."""
    os.environ["DSMATH_FAULT"] = fault
    return function(*arguments)


@contextlib.contextmanager
def _exit_as_exception() -> Any:
    """A rank that fails calls `os._exit`; here its output is still to be returned to the test."""

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
