"""What decontamination read, kept and dropped, and what each benchmark was the reason of."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from megatron_dsmath.data.decontamination.benchmark_texts import Benchmark
from megatron_dsmath.data.decontamination.ngrams import NGRAM_UNITS, SHORTEST_UNITS, BenchmarkNgrams
from megatron_dsmath.data.decontamination.tally import FrequentMatch, Hits


@dataclass
class FileReport:
    """Every line of one input file; bytes are those of the lines with their newlines."""

    file: Path
    kept: int = 0
    dropped: int = 0
    bad_lines: int = 0
    kept_bytes: int = 0
    dropped_bytes: int = 0


@dataclass
class FieldTexts:
    """What became of the texts of one field of a benchmark: `too_short` ones are not looked for."""

    texts: int = 0
    matched_by_ngrams: int = 0
    matched_as_a_whole: int = 0
    too_short: int = 0


@dataclass(frozen=True)
class BenchmarkReport:
    """What one benchmark file gave, and what it cost: see `tally.Hits`.

    `ngrams`: distinct 10-grams. `rows_without_text`: of each field, the rows that gave none.
    """

    file: Path
    rows: int
    fields: Mapping[str, FieldTexts]
    rows_without_text: Mapping[str, int]
    ngrams: int
    documents: int
    drop_rate: float
    looking_false: int
    documents_by_longest_passage_units: Mapping[str, int]
    frequent_ngrams: tuple[FrequentMatch, ...]
    frequent_short_texts: tuple[FrequentMatch, ...]


@dataclass(frozen=True)
class DecontaminationReport:
    """What one call of `decontaminate` did. Every line of the input is kept, dropped or bad.

    `dropped_documents` and `quarantine` are files with a row for each dropped document and each bad line. In
    `looking_false` of the dropped documents, every match looks like a false hit. `input_bytes` are those of the files
    as they lie on the disk. `sha256` is that of `out`.
    """

    out: Path
    sha256: str
    dropped_documents: Path
    quarantine: Path | None
    input_bytes: int
    looking_false: int
    seconds: float
    files: tuple[FileReport, ...]
    benchmarks: tuple[BenchmarkReport, ...]

    @property
    def kept(self) -> int:
        """Documents."""
        return sum(file.kept for file in self.files)

    @property
    def dropped(self) -> int:
        """Documents."""
        return sum(file.dropped for file in self.files)

    @property
    def bad_lines(self) -> int:
        """Lines that are no documents."""
        return sum(file.bad_lines for file in self.files)

    def totals(self) -> dict[str, object]:
        """The facts of the whole run, by name."""
        documents = self.kept + self.dropped
        return {
            "documents": documents,
            "kept": self.kept,
            "dropped": self.dropped,
            "drop_rate": self.dropped / max(1, documents),
            "looking_false": self.looking_false,
            "bad_lines": self.bad_lines,
            "input_bytes": self.input_bytes,
            "kept_bytes": sum(file.kept_bytes for file in self.files),
            "dropped_bytes": sum(file.dropped_bytes for file in self.files),
            "out": self.out,
            "sha256": self.sha256,
            "dropped_documents": self.dropped_documents,
            "quarantine": self.quarantine,
        }

    def to_json(self) -> str:
        """The whole report but for the seconds: the same for any number of workers."""
        values = asdict(self)
        values = self.totals() | {"files": values["files"], "benchmarks": values["benchmarks"]}
        return json.dumps(values, default=str, indent=2, ensure_ascii=False) + "\n"


def benchmark_reports(
    benchmarks: Sequence[Benchmark], ngrams: BenchmarkNgrams, hits: Mapping[str, Hits], documents: int
) -> tuple[BenchmarkReport, ...]:
    """`ngrams` are those of the texts of `benchmarks`; `hits` are by path; `documents` are those of the whole input."""
    unit_counts = iter(np.diff(ngrams.units.firsts).tolist())
    ngram_counts = np.bincount(ngrams.tables[NGRAM_UNITS].benchmarks, minlength=len(benchmarks))
    return tuple(
        BenchmarkReport(
            file=benchmark.path,
            rows=benchmark.rows,
            fields=_field_texts(benchmark, unit_counts),
            rows_without_text=dict(benchmark.rows_without_text),
            ngrams=int(ngram_count),
            drop_rate=hits[str(benchmark.path)].documents / max(1, documents),
            **vars(hits[str(benchmark.path)]),
        )
        for benchmark, ngram_count in zip(benchmarks, ngram_counts, strict=True)
    )


def _field_texts(benchmark: Benchmark, unit_counts: Iterator[int]) -> dict[str, FieldTexts]:
    """`unit_counts` goes on from the first text of `benchmark`."""
    of_fields: dict[str, FieldTexts] = defaultdict(FieldTexts)
    for text, unit_count in zip(benchmark.texts, unit_counts, strict=False):
        of_field = of_fields[text.field]
        of_field.texts += 1
        if unit_count >= NGRAM_UNITS:
            of_field.matched_by_ngrams += 1
        elif text.is_question and unit_count >= SHORTEST_UNITS:
            of_field.matched_as_a_whole += 1
        else:
            of_field.too_short += 1
    return dict(of_fields)
