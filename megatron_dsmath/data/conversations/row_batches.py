"""The rows of all files in order, in portions that are handed to workers; those of Parquet as lines of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_dsmath.data.line_batches import LineBatch, line_batches
from megatron_dsmath.data.lines import LineBlock, require_content
from megatron_dsmath.data.parquet_file import batches

if TYPE_CHECKING:
    from pyarrow import RecordBatch


def row_batches(paths: Sequence[Path]) -> Iterator[LineBatch]:
    """The lines of each file, or its rows where its name ends in .parquet: then line N is row N.

    Raises DataError, and DependencyError for a Parquet file without pyarrow.
    """
    finished_bytes = 0
    for path in paths:
        size_bytes = require_content(path)
        yield from (
            _parquet_rows(path, finished_bytes) if path.suffix == ".parquet" else line_batches([path], finished_bytes)
        )
        finished_bytes += size_bytes


def _parquet_rows(path: Path, finished_bytes: int) -> Iterator[LineBatch]:
    for first_number, lines, read_bytes in batches(path, _lines):
        content = b"\n".join(lines)
        yield LineBatch(path, LineBlock(first_number, content, len(content)), finished_bytes + read_bytes)


def _lines(batch: RecordBatch) -> list[bytes]:
    return [_line(row) for row in batch.to_pylist()]


def _line(row: dict[str, Any]) -> bytes:
    """A row as JSON, in which a number that is none is null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
    return json.dumps(finite, default=str).encode()
