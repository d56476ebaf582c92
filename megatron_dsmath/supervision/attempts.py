"""The record of a run's starts; restarts that never reach a new checkpoint are refused."""

from __future__ import annotations

import json
import time
from pathlib import Path

from megatron_dsmath.errors import EXIT_REFUSED, RunError
from megatron_dsmath.files.atomic_files import append_row
from megatron_dsmath.training.run_directory import RunDirectory

MOST_RESTARTS = 3  # in a row that fail before a new checkpoint (as in nvidia-resiliency-ext)
FAILED = ("failed", "running")  # `running`: killed before it could write how it ended


def require_progress(directory: RunDirectory, checkpoint: Path | None) -> None:
    """Raise RunError if a start from `checkpoint` and MOST_RESTARTS restarts in a row failed; then count from 0."""
    failures = _failures_in_a_row(directory, _step_of(checkpoint))
    if failures <= MOST_RESTARTS:
        return
    last = directory.last_status()
    error = RunError(
        "the run fails repeatedly before it can save",
        where=directory.root,
        found=f"{failures} starts from step {_step_of(checkpoint)} failed, the last after step {last.get('step')}: "
        f"{last.get('message') or 'killed'}",
        expected=f"a new checkpoint within {MOST_RESTARTS} restarts",
        fix="correct the cause (logs/ may name it) and start it again: the count begins at 0",
    )
    directory.write_status("refused", EXIT_REFUSED, directory.last_step(), f"{error.what}: {error.found}")
    raise error


def begin_attempt(directory: RunDirectory, checkpoint: Path | None) -> None:
    """Record a start from `checkpoint`, and how the previous start ended. Raises as `require_progress`."""
    require_progress(directory, checkpoint)
    directory.create()
    last = directory.last_status()
    row = {"from_step": _step_of(checkpoint), "after": last.get("state"), "message": last.get("message")}
    append_row(directory.attempts, {"time_unix": time.time(), **row})


def _failures_in_a_row(directory: RunDirectory, from_step: int) -> int:
    """The number of consecutive starts from `from_step`, up to the last one, that failed."""
    if not directory.attempts.exists():
        return 0
    count, ending = 0, directory.state()
    for line in reversed(directory.attempts.read_text(encoding="utf-8").splitlines()):
        try:
            row = json.loads(line)
        except ValueError:  # torn
            continue
        if ending not in FAILED or row["from_step"] != from_step:
            break
        count, ending = count + 1, row["after"]
    return count


def _step_of(checkpoint: Path | None) -> int:
    return 0 if checkpoint is None else int(checkpoint.name.removeprefix("step_"))
