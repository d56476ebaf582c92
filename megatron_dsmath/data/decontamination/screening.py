"""Compares batches of documents with the n-grams of all benchmarks; runs in every worker process."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_dsmath.data.decontamination.benchmark_texts import Benchmark
from megatron_dsmath.data.decontamination.ngrams import BenchmarkNgrams, Passage
from megatron_dsmath.data.decontamination.text_units import Units, split_units
from megatron_dsmath.data.text.document_batches import LineBatch
from megatron_dsmath.data.text.documents import BadLine, parse_documents
from megatron_dsmath.errors import DependencyError
from megatron_dsmath.files.lines import Line

Compress = Callable[[bytes], bytes]

GZIP_CONTAINER = 16 + zlib.MAX_WBITS  # zlib's code for gzip; the header holds neither name nor time


@dataclass(frozen=True)
class Match:
    """A passage that a document shares with a benchmark.

    The passage begins with `ngram` of `units` units: 10, or 3 to 9 for a whole question. `rows` rows of the benchmark
    contain the n-gram. `row` is the first of them; there, the text of `field` and the document agree for
    `passage_units` units. ⟦ ⟧ mark the passage in both excerpts.
    """

    benchmark: str
    field: str
    row: int
    rows: int
    ngram: str
    units: int
    passage_units: int
    text: str
    benchmark_text: str


@dataclass(frozen=True)
class DroppedDocument:
    """A document that shares at least one passage with a benchmark."""

    file: str
    line: int
    matches: Sequence[Match]


class ScreenedBatch(NamedTuple):
    """The result for one batch; `read_bytes` is that of the `LineBatch`.

    `kept` holds the kept lines, compressed as the output is. `kept_bytes` and `dropped_bytes` count the uncompressed
    lines with their newlines.
    """

    path: Path
    read_bytes: int
    kept: bytes
    kept_count: int
    kept_bytes: int
    dropped: list[DroppedDocument]
    dropped_bytes: int
    bad_lines: list[BadLine]
    unit_count: int


class Screen:
    """The n-grams of all benchmarks, about 45 bytes per unit of their texts; pickled once for each worker."""

    def __init__(self, benchmarks: Sequence[Benchmark], fields: Sequence[str], compress: Compress) -> None:
        """`fields` of a line are joined to its document; `compress` turns the kept lines into a part of the output."""
        self._fields, self._compress = fields, compress
        texts = [text for benchmark in benchmarks for text in benchmark.texts]
        self._names = [str(benchmark.path) for benchmark in benchmarks]
        self._locations = [(text.row, text.field) for text in texts]
        rows = np.array([text.row for text in texts])
        owners = np.repeat(np.arange(len(benchmarks)), [len(benchmark.texts) for benchmark in benchmarks])
        is_question = np.array([text.is_question for text in texts], bool)
        self.ngrams = BenchmarkNgrams(split_units([text.text for text in texts]), rows, owners, is_question)

    def __call__(self, batch: LineBatch) -> ScreenedBatch:
        """Parse, compare and compress one batch, so that workers share all work proportional to the input."""
        documents: list[tuple[Line, str]] = []
        bad_lines: list[BadLine] = []
        for line, parsed in zip(batch.rows, parse_documents(batch.path, batch.rows, self._fields), strict=True):
            if isinstance(parsed, BadLine):
                bad_lines.append(parsed)
            else:
                documents.append((line, "\n".join(parsed.texts)))
        units = split_units([text for _, text in documents])
        matches: dict[int, list[Match]] = defaultdict(list)
        for passage in self.ngrams.find_passages(units):
            matches[passage.text].append(self._match(units, passage))
        kept = [line.content for index, (line, _) in enumerate(documents) if index not in matches]
        dropped = [(documents[index][0], matches[index]) for index in sorted(matches)]
        return ScreenedBatch(
            path=batch.path,
            read_bytes=batch.read_bytes,
            kept=self._compress(b"".join(line + b"\n" for line in kept)) if kept else b"",
            kept_count=len(kept),
            kept_bytes=sum(map(len, kept)) + len(kept),
            dropped=[DroppedDocument(str(batch.path), line.number, found) for line, found in dropped],
            dropped_bytes=sum(len(line.content) + 1 for line, _ in dropped),
            bad_lines=bad_lines,
            unit_count=len(units.starts),
        )

    def _match(self, units: Units, passage: Passage) -> Match:
        table = self.ngrams.tables[passage.length]
        position = int(table.positions[passage.entry])
        row, field = self._locations[int(self.ngrams.units.texts_of(position))]
        return Match(
            benchmark=self._names[passage.benchmark],
            field=field,
            row=row,
            rows=int(table.row_counts[passage.entry]),
            ngram=" ".join(self.ngrams.units.words(position, passage.length)),
            units=passage.length,
            passage_units=passage.unit_count,
            text=units.excerpt(passage.start, passage.unit_count),
            benchmark_text=self.ngrams.units.excerpt(position, passage.unit_count),
        )


def select_compression(path: Path) -> Compress:
    """Return what turns lines into a part of `path`: a .gz member, a .zst frame, or the unchanged lines.

    The same lines give the same bytes in any process. Raises DependencyError if a package is not installed.
    """
    if path.suffix == ".gz":
        return _gzip_member
    if path.suffix != ".zst":
        return bytes
    try:
        import zstandard  # noqa: F401, checks that it is installed
    except ImportError as error:
        raise DependencyError(
            "a .zst file needs the package zstandard",
            where=path,
            found="it is not installed",
            expected="zstandard",
            fix="pip install zstandard, or choose a name without .zst",
        ) from error
    return _zstandard_frame


def _gzip_member(lines: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=GZIP_CONTAINER)
    return compressor.compress(lines) + compressor.flush()


def _zstandard_frame(lines: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(lines)
