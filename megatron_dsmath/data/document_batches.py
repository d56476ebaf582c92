"""The documents of all files in order, in portions that are handed to workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_dsmath.data.line_batches import LineBatch, line_batches
from megatron_dsmath.data.lines import require_content
from megatron_dsmath.data.parquet import RowBatch, row_batches


def document_batches(paths: Sequence[Path], fields: Sequence[str]) -> Iterator[LineBatch | RowBatch]:
    """The lines of each file, or its rows where its name ends in .parquet."""
    finished_bytes = 0
    for path in paths:
        if path.suffix == ".parquet":
            yield from row_batches(path, fields, finished_bytes)
        else:
            yield from line_batches([path], finished_bytes)
        finished_bytes += require_content(path)
