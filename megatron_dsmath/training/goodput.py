"""The share of a run's wall time that was training, computed from its directory and so over all restarts."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_dsmath.errors import OutputError
from megatron_dsmath.files.atomic_files import append_row
from megatron_dsmath.training.run_directory import RunDirectory


@dataclass
class Goodput:
    """Sums over all starts of a run so far; read from its files once, then updated with each step and save."""

    first_start_unix: float
    restarts: int = 0  # starts after the first; a return to a checkpoint after a rejected step counts as one
    lost_steps: int = 0  # steps that a restart trained again
    useful_seconds: float = 0.0  # wall time of the steps in metrics.jsonl
    save_seconds: float = 0.0  # wall time in which training waited for a save
    failed_saves: int = 0  # saves that failed at the disk, after which training continued

    @classmethod
    def of(cls, directory: RunDirectory) -> Goodput:
        """Read logs/starts.jsonl, logs/saves.jsonl and metrics.jsonl; incomplete lines are ignored."""
        starts, saves = list(_rows(directory.starts_file)), list(_rows(directory.saves))
        return cls(
            first_start_unix=starts[0]["time_unix"] if starts else time.time(),
            restarts=max(0, len(starts) - 1),
            lost_steps=sum(start.get("rows_done_again", 0) for start in starts),
            useful_seconds=sum(row.get("step_seconds", 0.0) for row in _rows(directory.metrics)),
            save_seconds=sum(save.get("seconds", 0.0) for save in saves),
            failed_saves=sum("failed" in save for save in saves),
        )

    def add_save(self, directory: RunDirectory, step: int, seconds: float) -> None:
        """Add a save, and append it to logs/saves.jsonl."""
        self.save_seconds += seconds
        append_row(directory.saves, {"step": step, "seconds": seconds, "time_unix": time.time()})

    def add_failed_save(self, directory: RunDirectory, step: int, reason: str) -> None:
        """Add a failed save, and append it to logs/saves.jsonl if the disk has room for it."""
        self.failed_saves += 1
        with suppress(OutputError):
            append_row(directory.saves, {"step": step, "failed": reason, "time_unix": time.time()})

    def facts(self) -> dict[str, Any]:
        """The entries of metrics.jsonl and STATUS.json; `goodput` is useful time over wall time, None before any."""
        wall_seconds = time.time() - self.first_start_unix
        return {
            "goodput": min(1.0, self.useful_seconds / wall_seconds) if wall_seconds > 0 else None,
            "restarts": self.restarts,
            "lost_steps": self.lost_steps,
            "save_seconds": self.save_seconds,
            "failed_saves": self.failed_saves,
        }


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    if not file.exists():
        return
    with file.open(encoding="utf-8") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict):
                yield row
