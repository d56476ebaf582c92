"""Rows of a Parquet file in batches, read with the optional package pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from megatron_dsmath.data.text.documents import BadLine, Document
from megatron_dsmath.errors import DataError, DependencyError
from megatron_dsmath.files.lines import BLOCK_BYTES, EXCERPT_BYTES, LINE_LIMIT_BYTES, Line

if TYPE_CHECKING:
    from pyarrow import RecordBatch, Schema
    from pyarrow.parquet import ParquetFile

MAX_ROWS = 4096  # per batch
READ_BYTES = 1 << 20  # per column and read, so that memory does not grow with the row group

Content = TypeVar("Content")


class RowBatch(NamedTuple):
    """Rows of one file: the bytes of each field, None for null. `first_number`: the first row, counted from 1.

    `read_bytes`: bytes of all files up to the end of this batch, estimated as if all rows had the same size.
    """

    path: Path
    first_number: int
    rows: list[tuple[bytes | None, ...]]
    read_bytes: int

    def documents(self, fields: Sequence[str]) -> Iterator[Document | BadLine]:
        """The document of each row, or the bad row. `fields`: the same that the batch was read with."""
        for number, row in enumerate(self.rows, self.first_number):
            try:
                where = f"{self.path}:row {number}"
                texts = tuple(_text(content, field, where) for field, content in zip(fields, row, strict=True))
            except DataError as error:
                content = b"\n".join(content or b"" for content in row)
                kept = content if len(content) <= LINE_LIMIT_BYTES else content[:EXCERPT_BYTES]
                yield BadLine(self.path, Line(number, kept, len(content)), error)
            else:
                yield Document(self.path, number, texts)


def row_batches(path: Path, fields: Sequence[str], finished_bytes: int) -> Iterator[RowBatch]:
    """The rows of `path`, read with `parquet_batches`. `finished_bytes`: bytes of the files that were read before."""
    for first_number, rows, read_bytes in parquet_batches(path, partial(_contents, fields), fields):
        yield RowBatch(path, first_number, rows, finished_bytes + read_bytes)


def parquet_batches(
    path: Path, content_of: Callable[[RecordBatch], Content], texts: Sequence[str] | None = None
) -> Iterator[tuple[int, Content, int]]:
    """For each batch: the number of its first row (from 1), the result of `content_of`, the bytes read up to its end.

    The bytes are estimated as if all rows had the same size. `texts`: the columns to read, which must contain
    strings; None reads all columns. Raises DependencyError without pyarrow, and DataError with the file and, if known,
    the row.
    """
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
    size_bytes, number = path.stat().st_size, 0
    try:
        with parquet.ParquetFile(path, buffer_size=READ_BYTES, pre_buffer=False) as file:
            _require_texts(path, file.schema_arrow, texts or ())
            row_count = file.metadata.num_rows
            for group in range(file.num_row_groups):
                for batch in file.iter_batches(_rows_per_batch(file, group), [group], texts, use_threads=False):
                    content = content_of(batch)
                    first_number, number = number + 1, number + batch.num_rows
                    yield first_number, content, size_bytes * number // row_count
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        raise DataError(
            "the Parquet file cannot be read",
            where=f"{path}:row {number + 1}",
            found=str(error).partition("\n")[0],
            expected="a complete Parquet file, with text in UTF-8",
            fix="the file is truncated or damaged: get it again",
        ) from error
    if number == 0:
        raise DataError("the file is empty", where=path, found="no row", expected="rows", fix="leave it out")


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
            raise DataError("the column does not contain text", where=where, found=kind, expected="strings")


def _rows_per_batch(file: ParquetFile, group: int) -> int:
    """The number of rows that makes a batch about as large as a block of lines."""
    metadata = file.metadata.row_group(group)
    row_bytes = max(1, metadata.total_byte_size // max(1, metadata.num_rows))
    return min(MAX_ROWS, max(1, BLOCK_BYTES // int(row_bytes)))


def _contents(fields: Sequence[str], batch: RecordBatch) -> list[tuple[bytes | None, ...]]:
    """The texts of each row as bytes, because pyarrow does not check that they are UTF-8."""
    import pyarrow

    columns = [batch.column(field) for field in fields]
    plain = [column.dictionary_decode() if pyarrow.types.is_dictionary(column.type) else column for column in columns]
    return list(zip(*(column.cast(pyarrow.large_binary()).to_pylist() for column in plain), strict=True))


def _text(content: bytes | None, field: str, where: str) -> str:
    if content is None:
        raise _bad_row(where, "the field is not a string", f"{field!r} is null", "a string")
    if len(content) > LINE_LIMIT_BYTES:
        raise _bad_row(where, "the text is too long", f"{len(content):,} bytes", f"at most {LINE_LIMIT_BYTES:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at {error.start + 1:,} of {field!r}: {error.reason}"
        raise _bad_row(where, "the text is not UTF-8", found, "UTF-8") from None


def _bad_row(where: str, what: str, found: str, expected: str) -> DataError:
    fix = "correct the row, or set bad rows aside: --bad-lines skip"
    return DataError(what, where=where, found=found, expected=expected, fix=fix)
