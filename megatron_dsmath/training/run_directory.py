"""The directory of a run: its files, its status, and the record of its starts."""

from __future__ import annotations

import json
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from megatron_dsmath.errors import OutputError
from megatron_dsmath.files.atomic_files import append_row, replace_text

Status = Literal["running", "done", "stopped", "failed", "refused"]


class RunDirectory:
    """The files under `RunConfig.output`, and STATUS.json.

    Rank 0 writes them, with two exceptions: checkpoints, and the final status, which the first rank that fails writes
    (`supervision.start`). Methods raise OutputError for files that cannot be written.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.resolved_config = root / "run.yaml"  # the run as it was last started, with all values
        self.metrics = root / "metrics.jsonl"  # one row per completed step
        self.status = root / "STATUS.json"  # the state of the run and its exit code, for launch scripts
        self.checkpoints = root / "checkpoints"  # step_N/
        self.ledger = root / "ledger"  # the data of each step (`data.audit.ledger`)
        self.lock = root / "LOCK"  # held by the job that writes here (`supervision.lock`)
        self.wandb = root / "wandb"  # the files of W&B, and the id of the run there
        self.logs = root / "logs"
        self.starts_file = self.logs / "starts.jsonl"  # starts that came to the first step
        self.attempts = self.logs / "attempts.jsonl"  # all starts (`supervision.attempts`)
        self.saves = self.logs / "saves.jsonl"  # how long training waited for each save, and failed saves

    def create(self) -> None:
        """Create the directory. Raises OutputError where it cannot be written."""
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
            with tempfile.TemporaryFile(dir=self.root, buffering=0) as probe:
                probe.write(b"x")
        except OSError as error:
            raise OutputError(
                "the run's directory cannot be written",
                where=self.root,
                found=error.strerror,
                expected="a directory with free space that this user may write",
                fix="set output: to another directory, or free this one",
            ) from None

    def starts(self) -> int:
        """The number of earlier starts of the run."""
        return len(self._start_lines())

    def first_start(self) -> float | None:
        """When the run first came to its first step, in seconds of Unix time; None if it never did."""
        lines = self._start_lines()
        return float(json.loads(lines[0])["time_unix"]) if lines else None

    def killed_after(self) -> int | None:
        """The last step before the first start that trained steps again; None where there is none."""
        starts = map(json.loads, self._start_lines())
        return next((start["step"] + start["rows_done_again"] for start in starts if start["rows_done_again"]), None)

    def _start_lines(self) -> list[str]:
        return self.starts_file.read_text(encoding="utf-8").splitlines() if self.starts_file.exists() else []

    def log_start(self, **facts: Any) -> None:
        """Record a start: time, host, process, and `facts`."""
        row = {"time_unix": time.time(), "host": socket.gethostname(), "pid": os.getpid(), **facts}
        append_row(self.starts_file, row)

    def last_step(self) -> int:
        """The step of the last complete row of metrics; 0 where there is none."""
        if not self.metrics.exists():
            return 0
        steps = [_step_of(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()[-2:]]
        return int(max((step for step in steps if step != float("inf")), default=0))

    def write_status(self, state: Status, exit_code: int | None, step: int, message: str = "", **more: Any) -> None:
        """Replace STATUS.json; `exit_code` is None while the run continues."""
        facts = {
            "state": state,
            "exit_code": exit_code,
            "step": step,
            "restarts": max(0, self.starts() - 1),
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "time_unix": time.time(),
            "message": message,
            **more,
        }
        replace_text(self.status, json.dumps(facts, indent=1) + "\n")

    def state(self) -> Status | None:
        """The state in STATUS.json; None where the run was never started."""
        state: Status | None = self.last_status().get("state")
        return state

    def last_status(self) -> dict[str, Any]:
        """The entries of STATUS.json; empty where the run was never started or the file is not a JSON object."""
        try:
            status = json.loads(self.status.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}


def keep_rows_until(file: Path, step: int, rest: Path) -> int:
    """Move rows after `step` and incomplete lines to `rest`, so that each step has one row; returns their number."""
    if not file.exists():
        return 0
    kept: list[str] = []
    moved: list[str] = []
    text = file.read_text(encoding="utf-8")
    for line in text.splitlines():
        (kept if _step_of(line) <= step else moved).append(line)
    if moved:
        replace_text(rest, "\n".join(moved) + "\n")
    if moved or not text.endswith("\n"):
        replace_text(file, "".join(line + "\n" for line in kept))
    return len(moved)


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
