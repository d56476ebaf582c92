"""One run, disturbed and continued, against the same run that nothing disturbed: bits, not tolerances."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_dsmath.checkpoint import store
from megatron_dsmath.errors import CheckpointError
from tests.support.corpora import write_run_file
from tests.support.job import Ending, run_job
from tests.training.ranks import numbers_of, rows_of

Bits = Callable[[str], dict[str, Any]]  # of a layout's undisturbed run, as `bits_of`

RANKS, STEPS, BETWEEN_SAVES = 2, 12, 3
LAYOUTS: dict[str, dict[str, Any]] = {"DP2": {}, "TP2": {"parallel__tensor": 2}, "PP2": {"parallel__pipeline": 2}}


@dataclass
class Tally:
    """What the campaign counts."""

    injected: int = 0
    survived: int = 0
    silent_corruptions: int = 0
    """Runs and reads that went on over something that is not what was saved."""
    lost_checkpoints: int = 0
    """Published checkpoints that are gone before their time, or no longer what they were."""


class Trial:
    """A run of 12 steps in a layout that saves after every third, and what faults do to it."""

    def __init__(self, inputs: Path, folder: Path, layout: str, tally: Tally, **overrides: Any) -> None:
        self.output, self.tally = folder / "run", tally
        values = {"schedule__steps": STEPS, "checkpoint__every_steps": BETWEEN_SAVES, **LAYOUTS[layout], **overrides}
        self.run_file = write_run_file(inputs, self.output, folder / "run.yaml", **values)

    def go(self, fault: str = "") -> Ending:
        """Start the run, or go on, with a fault or without; published checkpoints must outlive it, untouched."""
        before = self._published()
        ending = run_job(self.run_file, RANKS, fault)
        self.tally.injected += bool(fault)
        after = self._published()
        oldest = min([*after, STEPS])
        rewritten = [step for step in before.keys() & after.keys() if before[step] != after[step]]
        gone = [step for step in before.keys() - after.keys() if step > oldest]
        # A save begins once the one before it is published, and is over before the next row is written.
        due = max(0, ((self.last_step - 1) // BETWEEN_SAVES - 1) * BETWEEN_SAVES)
        lost = [*rewritten, *gone, *([due] if due > max(after, default=0) else [])]
        self.tally.lost_checkpoints += len(lost)
        assert lost == [], f"lost checkpoints of steps {lost}\n{ending.said}"
        return ending

    def ends_like(self, undisturbed: dict[str, Any]) -> None:
        """Go on without faults; the end must be the undisturbed run's, bit for bit."""
        ending = self.go()
        assert ending.codes == [0] * RANKS, ending.said
        self.is_like(undisturbed)

    def is_like(self, undisturbed: dict[str, Any]) -> None:
        """What it has come to must be the undisturbed run's end, bit for bit."""
        found = bits_of(self.output)
        differing = [name for name in undisturbed if found[name] != undisturbed[name]]
        self.tally.silent_corruptions += bool(differing)
        assert differing == []
        self.tally.survived = self.tally.injected

    @property
    def last_step(self) -> int:
        """Of which there is a row."""
        file = self.output / "metrics.jsonl"
        return len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0

    def saved_steps(self) -> list[int]:
        """Steps of published checkpoints, oldest first."""
        return sorted(self._published())

    def _published(self) -> dict[int, tuple[int, int, dict[str, Any]]]:
        """Inode, time of writing and hashes of each published checkpoint, all compared with its files."""
        found = {}
        for folder in (self.output / "checkpoints").glob("step_*"):
            if not folder.name.removeprefix("step_").isdecimal():
                continue
            try:
                manifest = store.verify(folder)
            except CheckpointError:
                self.tally.lost_checkpoints += 1
                raise
            status = folder.stat()
            found[manifest.step] = (status.st_ino, status.st_mtime_ns, manifest.model_dump(mode="json")["files"])
        return found


def bits_of(output: Path) -> dict[str, Any]:
    """What two runs have in common that are one: every number of every step, tokens, weights, moments, guard, plan."""
    manifest = store.verify(output / "checkpoints" / f"step_{STEPS}")
    return {
        "metrics": numbers_of(rows_of(output)),
        "token stream": (output / "ledger" / "steps.jsonl").read_text(encoding="utf-8"),
        "checkpoint's files": manifest.model_dump(mode="json")["files"],
        "checkpoint's state": manifest.state,
    }
