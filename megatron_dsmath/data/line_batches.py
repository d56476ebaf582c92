"""The lines of all files in order, in portions that are handed to workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from megatron_dsmath.data.documents import BadLine, Document, parse_documents
from megatron_dsmath.data.lines import Line, LineBlock, LineReader


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
