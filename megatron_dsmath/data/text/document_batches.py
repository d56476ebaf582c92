"""The lines of all files in order, in portions that are handed to workers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from megatron_dsmath.data.text.documents import BadLine, Document, parse_documents
from megatron_dsmath.data.text.parquet import RowBatch, parquet_batches, row_batches
from megatron_dsmath.errors import OutputError, UsageError
from megatron_dsmath.files.lines import Line, LineBlock, LineReader, require_content

if TYPE_CHECKING:
    from pyarrow import RecordBatch


def conversation_row_batches(paths: Sequence[Path]) -> Iterator[LineBatch]:
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
    for first_number, lines, read_bytes in parquet_batches(path, _lines):
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


def require_valid_options(workers: int, bad_lines: str) -> None:
    """Refuse what `--workers` and `--bad-lines` cannot be. Raises UsageError."""
    if workers < 1:
        raise UsageError("the number of workers is wrong", where="--workers", found=workers, expected="1 or more")
    if bad_lines not in ("fail", "skip"):
        raise UsageError(
            "bad lines are treated in one of two ways",
            where="--bad-lines",
            found=repr(bad_lines),
            expected="fail or skip",
        )


def require_separate_outputs(inputs: Sequence[Path], outputs: Sequence[Path]) -> None:
    """No output may overwrite an input: `--out corpus` with an input corpus.json would. Raises OutputError."""
    taken = {path.resolve() for path in inputs}
    for output in outputs:
        if output.resolve() in taken:
            raise OutputError(
                "an output would overwrite an input",
                where=output,
                found="the same file",
                expected="another name",
                fix="choose another --out",
            )


def document_batches(paths: Sequence[Path], fields: Sequence[str]) -> Iterator[LineBatch | RowBatch]:
    """The lines of each file, or its rows where its name ends in .parquet."""
    finished_bytes = 0
    for path in paths:
        if path.suffix == ".parquet":
            yield from row_batches(path, fields, finished_bytes)
        else:
            yield from line_batches([path], finished_bytes)
        finished_bytes += require_content(path)


class LineBatch(NamedTuple):
    """Lines of one file. `read_bytes` are those of all files up to the end of this batch."""

    path: Path
    block: LineBlock
    read_bytes: int

    @property
    def lines(self) -> list[Line]:
        """Each line, split anew at every call."""
        return list(self.block.lines())

    def documents(self, fields: Sequence[str]) -> Iterator[Document | BadLine]:
        """What each line is, with the texts of `fields`."""
        return parse_documents(self.path, self.block.lines(), fields)


def line_batches(paths: Sequence[Path], finished_bytes: int = 0) -> Iterator[LineBatch]:
    """The lines of all files in order, as much at a time as a worker is handed.

    `finished_bytes` were read of other files before.
    """
    for path in paths:
        with LineReader(path) as reader:
            for block in reader.blocks():
                yield LineBatch(path, block, finished_bytes + reader.position_bytes)
            finished_bytes += reader.size_bytes
