"""A wish to stop: signals set a flag, all ranks agree on it after a step, the loop saves and leaves with 75."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

# All that a scheduler, a terminal or torchrun passes on; SIGUSR1 is what launch/slurm.sbatch asks SLURM for.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)


@contextmanager
def held() -> Iterator[None]:
    """Let these signals wait in every process started within until it listens; while it starts, one would end it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def listen(handler: Callable[[int, FrameType | None], None]) -> None:
    """Hand these signals to `handler`, those that waited too; one that is ignored (under nohup) stays ignored."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


class StopRequest:
    """Remembers that a signal came; a second one changes nothing."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def listen(self) -> None:
        """Take over the signals by which schedulers and people ask a run to stop."""
        listen(self._remember)

    @property
    def made(self) -> bool:
        """Whether this rank was asked to stop."""
        return self.signal is not None

    def _remember(self, number: int, _frame: FrameType | None) -> None:
        self.signal = signal.Signals(number).name
