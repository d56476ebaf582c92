"""A run with faults, compared bit for bit with the same run without faults."""

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
    """The counts of the campaign."""

    injected: int = 0
    survived: int = 0
    silent_corruptions: int = 0
    """Runs and reads that continued with something other than what was saved."""
    lost_checkpoints: int = 0
    """Published checkpoints that were deleted too early or changed."""


class Trial:
    """A run of 12 steps in a layout, saved after every third step, into which faults are injected."""

    def __init__(self, inputs: Path, folder: Path, layout: str, tally: Tally, **overrides: Any) -> None:
        self.output, self.tally = folder / "run", tally
        values = {"schedule__steps": STEPS, "checkpoint__every_steps": BETWEEN_SAVES, **LAYOUTS[layout], **overrides}
        self.run_file = write_run_file(inputs, self.output, folder / "run.yaml", **values)

    def go(self, fault: str = "") -> Ending:
        """Start or continue the run, with a fault or without; published checkpoints must not change."""
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
        """Continue without faults; the end must equal the undisturbed run's, bit for bit."""
        ending = self.go()
        assert ending.codes == [0] * RANKS, ending.said
        self.is_like(undisturbed)

    def is_like(self, undisturbed: dict[str, Any]) -> None:
        """The end of the run must equal the undisturbed run's, bit for bit."""
        found = bits_of(self.output)
        differing = [name for name in undisturbed if found[name] != undisturbed[name]]
        self.tally.silent_corruptions += bool(differing)
        assert differing == []
        self.tally.survived = self.tally.injected

    @property
    def last_step(self) -> int:
        """The last step with a row in the metrics."""
        file = self.output / "metrics.jsonl"
        return len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0

    def saved_steps(self) -> list[int]:
        """The steps of the published checkpoints, oldest first."""
        return sorted(self._published())

    def _published(self) -> dict[int, tuple[int, int, dict[str, Any]]]:
        """Inode, modification time and hashes of each published checkpoint, after it is verified."""
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
    """Everything that two equal runs have in common: the numbers of every step, tokens, weights, moments, state."""
    manifest = store.verify(output / "checkpoints" / f"step_{STEPS}")
    return {
        "metrics": numbers_of(rows_of(output)),
        "token stream": (output / "ledger" / "steps.jsonl").read_text(encoding="utf-8"),
        "checkpoint's files": manifest.model_dump(mode="json")["files"],
        "checkpoint's state": manifest.state,
    }
