"""What a program may use, and how it ended."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

Verdict = Literal["ok", "error", "timeout", "memory", "output", "denied", "disk"]


class Limits(NamedTuple):
    """What one program may use; beyond it, the verdict names what it wanted too much of."""

    timeout_seconds: float = 10.0
    """Wall time; the processor time is limited to the same, rounded up."""
    memory_mib: int = 1024
    """Address space beyond what the interpreter holds when the program begins."""
    output_bytes: int = 64 << 10
    """Of standard output, and as much again of standard error."""
    disk_bytes: int = 16 << 20
    """In all files of the scratch directory together."""
    files: int = 256
    """Entries of the scratch directory, at any depth."""


class Outcome(NamedTuple):
    """How a program ended."""

    verdict: Verdict
    """ok: it ended by itself; error: an exception, or a crash; denied: it asked for what no program gets; timeout,
    memory, output, disk: a limit."""
    stdout: str
    """What it printed, up to the limit; bytes that are not UTF-8 are replaced."""
    stderr: str
    """What it wrote to standard error, a traceback included, up to the limit."""
    error: str
    """One line on why it did not end well, as the last line of a traceback; empty where it did."""
    seconds: float
    """Wall time."""

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict()
