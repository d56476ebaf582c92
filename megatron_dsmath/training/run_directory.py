"""A run's directory: where each file stands, and the two that tell outsiders how the run is doing."""

from __future__ import annotations

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from megatron_dsmath.errors import OutputError
from megatron_dsmath.files.atomic_files import append_row, replace_text

Status = Literal["running", "done", "stopped", "failed", "refused"]


@dataclass(frozen=True)
class RunDirectory:
    """Names under `RunConfig.output`; only rank 0 writes here, but for checkpoints and a last word (`training.start`).

    Whatever cannot be written raises OutputError.
    """

    root: Path

    @property
    def resolved_config(self) -> Path:
        """The run as it was last started, every value written out."""
        return self.root / "run.yaml"

    @property
    def metrics(self) -> Path:
        """A row for each completed step."""
        return self.root / "metrics.jsonl"

    @property
    def ledger(self) -> Path:
        """What was read, step by step (`data.ledger`)."""
        return self.root / "ledger"

    @property
    def status(self) -> Path:
        """How the run is doing: launch scripts take their exit code from it."""
        return self.root / "STATUS.json"

    @property
    def checkpoints(self) -> Path:
        """Holds step_N/."""
        return self.root / "checkpoints"

    @property
    def logs(self) -> Path:
        """Starts of the run, and metrics of steps that a restart did again."""
        return self.root / "logs"

    @property
    def lock(self) -> Path:
        """Held by the job that writes here (`training.lock`)."""
        return self.root / "LOCK"

    @property
    def attempts(self) -> Path:
        """Every start, also one that did not come as far as to continue anything (`training.attempts`)."""
        return self.logs / "attempts.jsonl"

    @property
    def saves(self) -> Path:
        """How long training stood still for each save, and which saves failed."""
        return self.logs / "saves.jsonl"

    @property
    def wandb(self) -> Path:
        """W&B's files and the run's id there."""
        return self.root / "wandb"

    def create(self) -> None:
        """Make the directory; raise OutputError where it cannot be written."""
        try:
            self.logs.mkdir(parents=True, exist_ok=True)
            self.checkpoints.mkdir(exist_ok=True)
            probe = self.root / f".probe-{os.getpid()}"
            try:
                probe.write_bytes(b"x")
            finally:
                probe.unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(
                "the run's directory cannot be written",
                where=self.root,
                found=error.strerror,
                expected="a directory with room that this user may write",
                fix="set output: to another directory, or free this one",
            ) from None

    def starts(self) -> int:
        """How often the run was started before."""
        file = self.logs / "starts.jsonl"
        return len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0

    def killed_after(self) -> int | None:
        """The last step before the first start that had to do steps again; None where no start had to."""
        file = self.logs / "starts.jsonl"
        starts = map(json.loads, file.read_text(encoding="utf-8").splitlines()) if file.exists() else ()
        return next((start["step"] + start["rows_done_again"] for start in starts if start["rows_done_again"]), None)

    def log_start(self, **facts: Any) -> None:
        """Remember one start: when, where, and what it continued from."""
        row = {"time_unix": time.time(), "host": socket.gethostname(), "pid": os.getpid(), **facts}
        append_row(self.logs / "starts.jsonl", row)

    def last_step(self) -> int:
        """The step of the last whole row of metrics; 0 where there is none."""
        if not self.metrics.exists():
            return 0
        steps = [_step_of(line) for line in self.metrics.read_text(encoding="utf-8").splitlines()[-2:]]
        return int(max((step for step in steps if step != float("inf")), default=0))

    def write_status(self, state: Status, exit_code: int | None, step: int, message: str = "", **more: Any) -> None:
        """Replace STATUS.json; `exit_code` is null while the run goes on."""
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
        """What STATUS.json says of the run; None where it was never started."""
        state: Status | None = self.last_status().get("state")
        return state

    def last_status(self) -> dict[str, Any]:
        """STATUS.json; empty where the run was never started or the file is no JSON object."""
        try:
            status = json.loads(self.status.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return status if isinstance(status, dict) else {}


def keep_rows_until(file: Path, step: int, rest: Path) -> int:
    """Move rows past `step`, and a torn last line, to `rest`, so that each step stands once; returns how many."""
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
