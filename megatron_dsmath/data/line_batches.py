"""The lines of all files in order, in portions that are handed to workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from megatron_dsmath.data.lines import Line, LineReader

BATCH_BYTES = 256 << 10  # what a worker is handed at once: small enough to share out, large enough to be worth it
BATCH_LINES = 4096


class LineBatch(NamedTuple):
    """Lines of one file. `read_bytes` are those of all files up to the end of this batch."""

    path: Path
    lines: list[Line]
    read_bytes: int


def line_batches(paths: Sequence[Path]) -> Iterator[LineBatch]:
    """The lines of all files in order, as much at a time as a worker is handed."""
    finished_bytes = 0
    for path in paths:
        with LineReader(path) as reader:
            lines: list[Line] = []
            size_bytes = 0
            for line in reader:
                lines.append(line)
                size_bytes += len(line.content)
                if size_bytes >= BATCH_BYTES or len(lines) == BATCH_LINES:
                    yield LineBatch(path, lines, finished_bytes + reader.position_bytes)
                    lines, size_bytes = [], 0
            finished_bytes += reader.size_bytes
            yield LineBatch(path, lines, finished_bytes)
