"""PREFIX.validated: that a large index was found sound, so that it is checked once and not at every start.

It counts as long as both files have the size and the time of change they had then. It is no part of the dataset: where
it is missing or the folder cannot be written, the index is checked again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

NOTED_FROM_BYTES = 1 << 24  # a smaller index is checked within 10 ms


Marks = dict[str, list[int]]


def marks_of(files: Sequence[Path]) -> Marks:
    """Size in bytes and time of change of each file, by its ending."""
    statuses = [(file.suffix, file.stat()) for file in files]
    return {suffix: [status.st_size, status.st_mtime_ns] for suffix, status in statuses}


def is_noted(note: Path, marks: Marks) -> bool:
    """Whether `note` speaks of files with these marks."""
    try:
        noted: object = json.loads(note.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return noted == marks


def write_note(note: Path, marks: Marks) -> None:
    """Remember that the files with these marks are sound, if the system lets us."""
    scratch = note.with_name(f"{note.name}.{os.getpid()}.partial")
    with suppress(OSError):
        scratch.write_text(json.dumps(marks) + "\n", encoding="utf-8")
        scratch.replace(note)
