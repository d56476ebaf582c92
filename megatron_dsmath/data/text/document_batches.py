"""Batches of documents from text files and Parquet files, small enough to be distributed to worker processes."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from megatron_dsmath.data.text.documents import BadLine, Document, parse_documents
from megatron_dsmath.data.text.parquet import RowBatch, parquet_batches, row_batches
from megatron_dsmath.errors import OutputError, UsageError
from megatron_dsmath.files.lines import EXCERPT_BYTES, LINE_LIMIT_BYTES, Line, LineBlock, LineReader, require_content

if TYPE_CHECKING:
    from pyarrow import RecordBatch


class LineBatch(NamedTuple):
    """Lines of one file. `read_bytes`: bytes of all files up to the end of this batch."""

    path: Path
    block: LineBlock
    read_bytes: int

    @property
    def rows(self) -> list[Line]:
        """The lines; every access splits the block again."""
        return list(self.block.lines())

    def documents(self, fields: Sequence[str]) -> Iterator[Document | BadLine]:
        """The document of each line, with the texts of `fields`, or the bad line."""
        return parse_documents(self.path, self.block.lines(), fields)


DocumentBatch = LineBatch | RowBatch


def document_batches(paths: Sequence[Path], fields: Sequence[str]) -> Iterator[DocumentBatch]:
    """The lines of each file in order; the rows of a file whose name ends in .parquet."""
    finished_bytes = 0
    for path in paths:
        if path.suffix == ".parquet":
            yield from row_batches(path, fields, finished_bytes)
        else:
            yield from line_batches([path], finished_bytes)
        finished_bytes += require_content(path)


def line_batches(paths: Sequence[Path], finished_bytes: int = 0) -> Iterator[LineBatch]:
    """The lines of all files in order. `finished_bytes`: bytes of the files that were read before."""
    for path in paths:
        with LineReader(path) as reader:
            for block in reader.blocks():
                yield LineBatch(path, block, finished_bytes + reader.position_bytes)
            finished_bytes += reader.size_bytes


class TableRow(NamedTuple):
    """One row of a Parquet file, as the values that JSON has. `number` counts from 1."""

    number: int
    fields: dict[str, Any]

    def line(self) -> Line:
        """The row as a line of JSON; only the beginning of one that is longer than a line may be."""
        content = json.dumps(self.fields).encode()
        kept = content if len(content) <= LINE_LIMIT_BYTES else content[:EXCERPT_BYTES]
        return Line(self.number, kept, len(content))


class TableBatch(NamedTuple):
    """Rows of one Parquet file. `read_bytes` counts all files up to the end of this batch."""

    path: Path
    rows: list[TableRow]
    read_bytes: int


def conversation_row_batches(paths: Sequence[Path]) -> Iterator[LineBatch | TableBatch]:
    """The lines of each file in order, or its rows where its name ends in .parquet.

    Raises DataError, and DependencyError for a Parquet file without pyarrow.
    """
    finished_bytes = 0
    for path in paths:
        size_bytes = require_content(path)
        if path.suffix == ".parquet":
            for first_number, values, read_bytes in parquet_batches(path, _json_rows):
                rows = [TableRow(number, fields) for number, fields in enumerate(values, first_number)]
                yield TableBatch(path, rows, finished_bytes + read_bytes)
        else:
            yield from line_batches([path], finished_bytes)
        finished_bytes += size_bytes


def _json_rows(batch: RecordBatch) -> list[dict[str, Any]]:
    return [_json_value(row) for row in batch.to_pylist()]


def _json_value(value: Any) -> Any:
    """The value as JSON holds it: NaN and infinity become None, values of other types, such as dates, their text."""
    if isinstance(value, dict):
        return {name: _json_value(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def require_valid_options(workers: int, bad_lines: str) -> None:
    """Raise UsageError unless `--workers` and `--bad-lines` have valid values."""
    if workers < 1:
        raise UsageError("the number of workers is wrong", where="--workers", found=workers, expected="1 or more")
    if bad_lines not in ("fail", "skip"):
        what, expected = "the treatment of bad lines is unknown", "fail or skip"
        raise UsageError(what, where="--bad-lines", found=repr(bad_lines), expected=expected)


def require_separate_outputs(inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    """Raise OutputError if an output is also an input, as `--out corpus` is with the input corpus.json."""
    input_files = {path.resolve() for path in inputs}
    for output in outputs:
        if output.resolve() in input_files:
            raise OutputError(
                "an output would overwrite an input",
                where=output,
                found="the same file",
                expected="another name",
                fix="choose another --out",
            )
