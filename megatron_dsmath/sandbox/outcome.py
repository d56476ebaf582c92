"""The limits of a program, and how it ended."""

from __future__ import annotations

from typing import Literal, NamedTuple

Verdict = Literal["ok", "error", "timeout", "memory", "output", "denied", "disk"]


class Limits(NamedTuple):
    """The limits of one program. A program that exceeds one ends with the verdict of its name."""

    timeout_seconds: float = 10.0  # wall time; CPU time has the same limit, rounded up
    memory_mib: int = 1024  # address space in addition to what the interpreter uses when the program starts
    output_bytes: int = 64 << 10  # of standard output; standard error has the same limit
    disk_bytes: int = 16 << 20  # total size of the files in the scratch directory
    files: int = 256  # entries of the scratch directory, at any depth


class Outcome(NamedTuple):
    """How a program ended.

    Verdicts: ok, exit code 0; error, an exception, another exit code or a crash; denied, a forbidden operation; any
    other is the limit that was exceeded.
    """

    verdict: Verdict
    stdout: str  # up to the limit; invalid UTF-8 is replaced
    stderr: str  # up to the limit, with the traceback
    error: str  # one line about the error, such as the last line of the traceback; empty for ok
    seconds: float  # wall time
