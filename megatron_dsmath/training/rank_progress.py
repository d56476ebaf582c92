"""What a rank is doing: written by its main thread, read by the watchdog's thread."""

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
    """The section, the step and the operation that a rank is in.

    Only the rank's main thread writes it, so a reader needs no lock. The beginning of a section is also a fault point
    (`fault_injection`), which is named `SECTION.begin`.
    """

    def __init__(self) -> None:
        self.section: Section = "setup"
        self.step = 0  # completed steps
        self.detail = ""  # the operation within the section
        self.marks = 0  # increases with every section and every operation that begins
        self.topology = ""  # the rank's coordinates in the layout; empty until the layout is set up
        self.on_enter: Callable[[], None] | None = None  # called whenever a section begins
        self._step_seconds: deque[float] = deque(maxlen=MEDIAN_STEPS)
        self._entered = time.monotonic()

    @property
    def median_step_seconds(self) -> float | None:
        """Over the last MEDIAN_STEPS steps, without validation and saves; None before the first step is done."""
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
        """Begin an operation within the section."""
        self.detail = detail
        self.marks += 1
