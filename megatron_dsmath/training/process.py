"""Which process a number means: ids are given out again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def process_start(pid: int) -> str | None:
    """When a living process of this machine began, in ticks since boot; None for none, and where it is not Linux."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[19]
    return None
