"""Texts of a Parquet file in batches; every row is a document or a bad line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from megatron_dsmath.data.documents import BadLine, Document
from megatron_dsmath.data.lines import EXCERPT_BYTES, LINE_LIMIT_BYTES, Line
from megatron_dsmath.data.parquet_file import batches
from megatron_dsmath.errors import DataError

if TYPE_CHECKING:
    from pyarrow import Array, RecordBatch


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
    """The rows of `path`; `read_before_bytes` were read of other files. Raises as `batches` does."""

    def contents(batch: RecordBatch) -> list[tuple[bytes | None, ...]]:
        return list(zip(*(_contents(batch.column(field)) for field in fields), strict=True))

    for first_number, rows, read_bytes in batches(path, contents, fields):
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
