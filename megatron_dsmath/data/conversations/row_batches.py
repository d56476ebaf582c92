"""The rows of all files in order, in portions that are handed to workers; those of Parquet as lines of JSON."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_dsmath.data.line_batches import LineBatch, line_batches
from megatron_dsmath.data.lines import LineBlock, require_content
from megatron_dsmath.data.parquet import load_pyarrow
from megatron_dsmath.errors import DataError

ROWS_AT_ONCE = 512


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
    pyarrow, parquet = load_pyarrow(path)
    size_bytes, number = path.stat().st_size, 0
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(ROWS_AT_ONCE, use_threads=False):
                content = b"\n".join(_line(row) for row in batch.to_pylist())
                block, number = LineBlock(number + 1, content, len(content)), number + batch.num_rows
                yield LineBatch(path, block, finished_bytes + size_bytes * number // file.metadata.num_rows)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the Parquet file cannot be read",
            where=f"{path}, after row {number}",
            found=str(error).partition("\n")[0],
            expected="a whole Parquet file with text in UTF-8",
            fix="the file is cut off or damaged: fetch it again",
        ) from error
    if number == 0:
        raise DataError("the file is empty", where=path, found="no row", expected="rows", fix="leave it out")


def _line(row: dict[str, Any]) -> bytes:
    """A row as JSON, in which a number that is none is null."""
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()
    }
    return json.dumps(finite, default=str).encode()
