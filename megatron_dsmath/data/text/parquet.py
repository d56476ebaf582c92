"""A Parquet file batch by batch, by the optional package pyarrow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from megatron_dsmath.data.text.documents import BadLine, Document
from megatron_dsmath.errors import DataError, DependencyError
from megatron_dsmath.files.lines import BLOCK_BYTES, EXCERPT_BYTES, LINE_LIMIT_BYTES, Line

if TYPE_CHECKING:
    from pyarrow import Array, RecordBatch, Schema
    from pyarrow.parquet import ParquetFile


class RowBatch(NamedTuple):
    """Rows of one file, from `first_number` on (the first is 1): the bytes of each field, None where it is null.

    `read_bytes` are those of all files up to the end of this batch, as if rows had equal sizes.
    """

    path: Path
    first_number: int
    rows: list[tuple[bytes | None, ...]]
    read_bytes: int

    def documents(self, fields: Sequence[str]) -> Iterator[Document | BadLine]:
        """What each row is, with the texts of `fields`, which are those that the batch was read with."""
        for number, row in enumerate(self.rows, self.first_number):
            try:
                texts = tuple(
                    _text(content, field, f"{self.path}:row {number}")
                    for field, content in zip(fields, row, strict=True)
                )
            except DataError as error:
                content = b"\n".join(content or b"" for content in row)
                kept = content if len(content) <= LINE_LIMIT_BYTES else content[:EXCERPT_BYTES]
                yield BadLine(self.path, Line(number, kept, len(content)), error)
            else:
                yield Document(self.path, number, texts)


def row_batches(path: Path, fields: Sequence[str], read_before_bytes: int) -> Iterator[RowBatch]:
    """The rows of `path`; `read_before_bytes` were read of other files. Raises as `parquet_batches` does."""

    def contents(batch: RecordBatch) -> list[tuple[bytes | None, ...]]:
        return list(zip(*(_contents(batch.column(field)) for field in fields), strict=True))

    for first_number, rows, read_bytes in parquet_batches(path, contents, fields):
        yield RowBatch(path, first_number, rows, read_before_bytes + read_bytes)


def _contents(column: Array) -> list[bytes | None]:
    """As bytes, since nobody has looked whether they are UTF-8."""
    import pyarrow

    plain = column.dictionary_decode() if isinstance(column, pyarrow.DictionaryArray) else column
    contents: list[bytes | None] = plain.cast(pyarrow.large_binary()).to_pylist()
    return contents


def _text(content: bytes | None, field: str, where: str) -> str:
    if content is None:
        raise _bad(where, "the field is not a string", f"{field!r} is null", "a string")
    if len(content) > LINE_LIMIT_BYTES:
        raise _bad(where, "the text is too long", f"{len(content):,} bytes", f"at most {LINE_LIMIT_BYTES:,} bytes")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{content[error.start]:02x} at {error.start + 1:,} of {field!r}: {error.reason}"
        raise _bad(where, "the text is not UTF-8", found, "UTF-8") from None


def _bad(where: str, what: str, found: str, expected: str) -> DataError:
    fix = "correct the row, or set bad rows aside: --bad-lines skip"
    return DataError(what, where=where, found=found, expected=expected, fix=fix)


Content = TypeVar("Content")

ROWS_AT_MOST = 4096  # of a batch
READ_BYTES = 1 << 20  # of a column at once, so that memory does not grow with a row group


def parquet_batches(
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
