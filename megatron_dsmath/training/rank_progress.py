"""Where this process is in its run: named by the code as it goes along, read by the watchdog's thread.

A section's beginning is a fault point too (`faults`), by the name `SECTION.begin`.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from typing import Literal

from megatron_dsmath.fault_injection import fault_point

Section = Literal["setup", "step", "validation", "evaluation", "save", "end"]
MEDIAN_STEPS = 128


class RankProgress:
    """One process' place. Written by its main thread only; a reader needs no lock."""

    def __init__(self) -> None:
        self.section: Section = "setup"
        self.step = 0
        """Completed steps."""
        self.detail = ""
        self.marks = 0
        """Grows whenever the process gets on."""
        self.topology = ""
        """Its coordinates in the layout, once they are known."""
        self.on_enter: Callable[[], None] | None = None
        """Called on the way into each section."""
        self._step_seconds: deque[float] = deque(maxlen=MEDIAN_STEPS)
        self._entered = time.monotonic()

    @property
    def median_step_seconds(self) -> float | None:
        """Over the last steps without their validation and saves; None before the first is done."""
        return statistics.median(self._step_seconds) if self._step_seconds else None

    def enter(self, section: Section, step: int) -> None:
        """Begin a section after `step` completed steps."""
        now = time.monotonic()
        if section == "setup":
            self._step_seconds.clear()
        elif self.section == "step":
            self._step_seconds.append(now - self._entered)
        self.section, self.step, self.detail, self._entered = section, step, "", now
        self.marks += 1
        if self.on_enter is not None:
            self.on_enter()
        fault_point(f"{section}.begin", step)

    def mark(self, detail: str) -> None:
        """Say what is done now within the section."""
        self.detail = detail
        self.marks += 1


HERE = RankProgress()
enter, mark = HERE.enter, HERE.mark
