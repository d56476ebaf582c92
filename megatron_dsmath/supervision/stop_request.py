"""What a rank does at SIGTERM and the other signals that ask a run to stop.

1. The signal sets a flag (`StopRequest`). It interrupts nothing.
2. After each step, all ranks agree whether the flag is set on any of them (`training.train`).
3. If so, they save a checkpoint of that step, and `train` returns the state.
4. Rank 0 writes `stopped` to STATUS.json, and all ranks exit with 75 (`supervision.start`).
5. The same command continues from that checkpoint.
"""

from __future__ import annotations

import signal
from types import FrameType

from megatron_dsmath.files.processes import handle_stop_signals


class StopRequest:
    """A flag that a signal sets; more signals change nothing."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def listen(self) -> None:
        """Handle the signals by which schedulers and users ask a run to stop."""
        handle_stop_signals(self._remember)

    @property
    def made(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.signal is not None

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
