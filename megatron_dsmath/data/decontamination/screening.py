"""What a worker of the decontamination does: tell, of some lines, which share something with a benchmark."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_dsmath.data.decontamination.benchmark_texts import Benchmark
from megatron_dsmath.data.decontamination.decontamination_report import Dropped, Match
from megatron_dsmath.data.decontamination.ngrams import BenchmarkNgrams, Passage
from megatron_dsmath.data.decontamination.text_units import Units, split
from megatron_dsmath.data.text.document_batches import LineBatch
from megatron_dsmath.data.text.documents import BadLine, parse_documents
from megatron_dsmath.errors import DependencyError
from megatron_dsmath.files.lines import Line

Compress = Callable[[bytes], bytes]

GZIP_CONTAINER = 16 + zlib.MAX_WBITS  # zlib's way to say it; its header holds neither name nor time


def compression_of(path: Path) -> Compress:
    """What turns lines into a part of `path`: a member of a .gz file, a frame of a .zst one, else just the lines.

    The same lines give the same bytes, in any process. Raises DependencyError for a package that is not installed.
    """
    if path.suffix == ".gz":
        return _gzip_member
    if path.suffix != ".zst":
        return bytes
    try:
        import zstandard  # noqa: F401, whether it is there
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


class Screened(NamedTuple):
    """What becomes of a batch, of which `read_bytes` are as in `LineBatch`.

    `kept`: the lines that are kept, compressed as the output is. `kept_bytes` and `dropped_bytes` are those of the
    lines as they came, with their newlines.
    """

    path: Path
    read_bytes: int
    kept: bytes
    kept_count: int
    kept_bytes: int
    dropped: list[Dropped]
    dropped_bytes: int
    bad_lines: list[BadLine]
    unit_count: int


class Screen:
    """The n-grams of all benchmarks. About 45 bytes for each unit of their texts; each worker is sent one."""

    def __init__(self, benchmarks: Sequence[Benchmark], fields: Sequence[str], compress: Compress) -> None:
        """`fields` of a line, one after the other, are its document; `compress` makes kept lines a part of the output.

        All that is proportional to the input happens here, so that the workers share it.
        """
        self._fields, self._compress = fields, compress
        texts = [text for benchmark in benchmarks for text in benchmark.texts]
        self._names = [str(benchmark.path) for benchmark in benchmarks]
        self._places = [(text.row, text.field) for text in texts]
        rows = np.array([text.row for text in texts])
        owners = np.repeat(np.arange(len(benchmarks)), [len(benchmark.texts) for benchmark in benchmarks])
        is_question = np.array([text.is_question for text in texts], bool)
        self.ngrams = BenchmarkNgrams(split([text.text for text in texts]), rows, owners, is_question)

    def __call__(self, batch: LineBatch) -> Screened:
        """Screen one batch."""
        lines = batch.rows
        documents: list[tuple[Line, str]] = []
        bad_lines: list[BadLine] = []
        for line, parsed in zip(lines, parse_documents(batch.path, lines, self._fields), strict=True):
            if isinstance(parsed, BadLine):
                bad_lines.append(parsed)
            else:
                documents.append((line, "\n".join(parsed.texts)))
        units = split([text for _, text in documents])
        matches: dict[int, list[Match]] = defaultdict(list)
        for passage in self.ngrams.passages(units):
            matches[passage.text].append(self._match(units, passage))
        kept = [line.content for place, (line, _) in enumerate(documents) if place not in matches]
        dropped = [(documents[place][0], matches[place]) for place in sorted(matches)]
        return Screened(
            path=batch.path,
            read_bytes=batch.read_bytes,
            kept=self._compress(b"".join(line + b"\n" for line in kept)) if kept else b"",
            kept_count=len(kept),
            kept_bytes=sum(map(len, kept)) + len(kept),
            dropped=[Dropped(str(batch.path), line.number, found) for line, found in dropped],
            dropped_bytes=sum(len(line.content) + 1 for line, _ in dropped),
            bad_lines=bad_lines,
            unit_count=len(units.starts),
        )

    def _match(self, units: Units, passage: Passage) -> Match:
        table = self.ngrams.tables[passage.length]
        position = int(table.positions[passage.entry])
        row, field = self._places[int(self.ngrams.units.texts_of(position))]
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
