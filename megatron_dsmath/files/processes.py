"""Processes of this machine: their identity, the signals that stop a run, and the death of a parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

# The signals of schedulers, terminals and torchrun; launch/slurm.sbatch asks SLURM for SIGUSR1.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGQUIT)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Block the stop signals, also in every process started in the block: they wait until it handles or ignores them.

    Without it, a signal that arrives while the process starts would end it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def handle_stop_signals(handler: Callable[[int, FrameType | None], None]) -> None:
    """Call `handler` for each stop signal, including blocked ones; an ignored signal (under nohup) stays ignored."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


def end_with_parent(parent: int) -> None:
    """Kill this process when its parent, the process `parent`, ends for any reason (prctl(2); only on Linux)."""
    if sys.platform.startswith("linux"):
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before the call
        os.kill(os.getpid(), signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Whether a process of this machine exists."""
    with suppress(PermissionError):  # it exists and belongs to another user
        try:
            os.kill(pid, 0)
        except (ProcessLookupError, OverflowError):
            return False
    return True


def can_run(pid: int) -> bool:
    """Whether a process of this machine exists and is neither stopped nor dead (Linux)."""
    fields = _status_fields(pid)
    return bool(fields) and fields[0] not in "TtZX"


def process_start(pid: int) -> str | None:
    """When a process began, in ticks since boot; None if it does not exist or the system is not Linux.

    Process ids are used again: a process is identified by its id and its start.
    """
    fields = _status_fields(pid)
    return fields[19] if fields else None


def _status_fields(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on (proc(5), field 3)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return []
