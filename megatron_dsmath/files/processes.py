"""Which process a number means: ids are given out again."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path


def process_start(pid: int) -> str | None:
    """When a living process of this machine began, in ticks since boot; None for none, and where it is not Linux."""
    facts = _facts(pid)
    return facts[19] if facts else None


def can_run(pid: int) -> bool:
    """Whether a process of this machine is there, and neither stopped nor dead (Linux)."""
    facts = _facts(pid)
    return bool(facts) and facts[0] not in "TtZX"


def _facts(pid: int) -> list[str]:
    """What the system says of it, from its state on (proc(5), field 3)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    return []
