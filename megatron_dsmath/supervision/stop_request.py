"""A wish to stop: signals set a flag, all ranks agree on it after a step, the loop saves and leaves with 75."""

from __future__ import annotations

import signal
from types import FrameType

from megatron_dsmath.files.processes import handle_stop_signals


class StopRequest:
    """Remembers that a signal came; a second one changes nothing."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def listen(self) -> None:
        """Take over the signals by which schedulers and people ask a run to stop."""
        handle_stop_signals(self._remember)

    @property
    def made(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.signal is not None

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
