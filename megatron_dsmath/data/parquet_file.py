"""A Parquet file batch by batch, by the optional package pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from megatron_dsmath.data.lines import BLOCK_BYTES
from megatron_dsmath.errors import DataError, DependencyError

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema
    from pyarrow.parquet import ParquetFile

Content = TypeVar("Content")

ROWS_AT_MOST = 4096  # of a batch
READ_BYTES = 1 << 20  # of a column at once, so that memory does not grow with a row group


def batches(
    path: Path, content_of: Callable[[RecordBatch], Content], texts: Sequence[str] | None = None
) -> Iterator[tuple[int, Content, int]]:
    """What `content_of` makes of each batch, its first row's number (from 1), and the bytes read up to its end.

    The bytes are as if rows had equal sizes. `texts`: the columns to read, which must hold strings; all where None.
    Raises DependencyError without pyarrow, DataError naming the file, and the row where there is one.
    """
    pyarrow, parquet = _load_pyarrow(path)
    size_bytes, number = path.stat().st_size, 0
    try:
        with parquet.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False) as file:
            _require_texts(path, file.schema_arrow, texts or ())
            row_count = file.metadata.num_rows
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(_rows_at_once(file, group), [group], texts, use_threads=False):
                    content = content_of(batch)
                    first_number, number = number + 1, number + batch.num_rows
                    yield first_number, content, size_bytes * number // row_count
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the Parquet file cannot be read",
            where=f"{path}:row {number + 1}",
            found=str(error).partition("\n")[0],
            expected="a whole Parquet file, with text in UTF-8",
            fix="the file is cut off or damaged: fetch it again",
        ) from error
    if number == 0:
        raise DataError("the file is empty", where=path, found="no row", expected="rows", fix="leave it out")


def _load_pyarrow(path: Path) -> tuple[Any, Any]:
    """The package, and its module for Parquet."""
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DependencyError(
            "a .parquet file needs the package pyarrow",
            where=path,
            found="it is not installed",
            expected="pyarrow",
            fix="pip install 'megatron_dsmath[parquet]', or convert the file to JSONL",
        ) from error
    return pyarrow, parquet


def _require_texts(path: Path, schema: Schema, fields: Sequence[str]) -> None:
    from pyarrow import types

    for field in fields:
        where = f"{path}:{field}"
        if schema.names.count(field) != 1:
            found = ", ".join(schema.names[:10])
            raise DataError("the column is missing", where=where, found=found, expected="one column of this name")
        kind = schema.field(field).type
        kind = kind.value_type if types.is_dictionary(kind) else kind
        if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
            raise DataError("the column holds no text", where=where, found=kind, expected="strings")


def _rows_at_once(file: ParquetFile, group: int) -> int:
    """So many that a batch is about as large as one of lines."""
    described = file.metadata.row_group(group)
    row_bytes = max(1, described.total_byte_size // max(1, described.num_rows))
    return min(ROWS_AT_MOST, max(1, BLOCK_BYTES // int(row_bytes)))
