"""The report of a decontamination: lines kept and dropped per file, and the documents that each benchmark dropped.

Per benchmark it lists the drop rate, the dropped documents by the length of their longest shared passage, and the
n-grams and short questions that dropped the most documents, each with an example.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from megatron_dsmath.data.decontamination.benchmark_texts import Benchmark
from megatron_dsmath.data.decontamination.ngrams import NGRAM_UNITS, SHORTEST_UNITS, BenchmarkNgrams
from megatron_dsmath.data.decontamination.screening import DroppedDocument, Match

LISTED = 20  # most frequent n-grams per benchmark
PASSAGE_CLASSES = {50: "50 or more", 20: "20 to 49", 13: "13 to 19", 10: "10 to 12", 3: "3 to 9"}


@dataclass
class FileReport:
    """The lines of one input file. Bytes include the newlines."""

    file: Path
    kept: int = 0
    dropped: int = 0
    bad_lines: int = 0
    kept_bytes: int = 0
    dropped_bytes: int = 0


@dataclass
class FieldTexts:
    """How the texts of one benchmark field are compared; texts that are `too_short` are not compared."""

    texts: int = 0
    matched_by_ngrams: int = 0
    matched_as_a_whole: int = 0
    too_short: int = 0


@dataclass
class FrequentMatch:
    """An n-gram or short question, the number of `documents` it dropped, and its match in the first of them."""

    documents: int
    longest_passage_units: int
    file: str
    line: int
    match: Match


@dataclass(frozen=True)
class BenchmarkReport:
    """What one benchmark file contains, and the documents that it dropped; each counts in one class of lengths.

    `ngrams` counts distinct 10-grams. `rows_without_text` counts, per field, the rows that gave no text.
    """

    file: Path
    rows: int
    fields: Mapping[str, FieldTexts]
    rows_without_text: Mapping[str, int]
    ngrams: int
    documents: int
    drop_rate: float
    documents_by_longest_passage_units: Mapping[str, int]
    frequent_ngrams: tuple[FrequentMatch, ...]
    frequent_short_texts: tuple[FrequentMatch, ...]


@dataclass(frozen=True)
class DecontaminationReport:
    """The report of one call of `decontaminate`. Every line of the input is kept, dropped or bad.

    `dropped_documents` and `quarantine` are files with one row per dropped document and per bad line. `input_bytes`
    is the size of the input files on disk. `sha256` is that of `out`.
    """

    out: Path
    sha256: str
    dropped_documents: Path
    quarantine: Path | None
    input_bytes: int
    files: tuple[FileReport, ...]
    benchmarks: tuple[BenchmarkReport, ...]

    @property
    def kept(self) -> int:
        """The number of kept documents."""
        return sum(file.kept for file in self.files)

    @property
    def dropped(self) -> int:
        """The number of dropped documents."""
        return sum(file.dropped for file in self.files)

    def totals(self) -> dict[str, object]:
        """The facts about the whole call, by name."""
        documents = self.kept + self.dropped
        return {
            "documents": documents,
            "kept": self.kept,
            "dropped": self.dropped,
            "drop_rate": self.dropped / max(1, documents),
            "bad_lines": sum(file.bad_lines for file in self.files),
            "input_bytes": self.input_bytes,
            "kept_bytes": sum(file.kept_bytes for file in self.files),
            "dropped_bytes": sum(file.dropped_bytes for file in self.files),
            "out": self.out,
            "sha256": self.sha256,
            "dropped_documents": self.dropped_documents,
            "quarantine": self.quarantine,
        }

    def to_json(self) -> str:
        """Everything; the text is the same for any number of workers."""
        tables = {
            "files": [asdict(file) for file in self.files],
            "benchmarks": [asdict(benchmark) for benchmark in self.benchmarks],
        }
        return json.dumps(self.totals() | tables, default=str, indent=2, ensure_ascii=False) + "\n"


def benchmark_reports(
    benchmarks: Sequence[Benchmark], ngrams: BenchmarkNgrams, counter: DropCounter, documents: int
) -> tuple[BenchmarkReport, ...]:
    """Return one report per benchmark. `ngrams` are those of their texts, `documents` is the size of the input."""
    unit_counts = iter(np.diff(ngrams.units.firsts).tolist())
    ngram_counts = np.bincount(ngrams.tables[NGRAM_UNITS].benchmarks, minlength=len(benchmarks))
    reports = []
    for benchmark, ngram_count in zip(benchmarks, ngram_counts.tolist(), strict=True):
        passages = counter.passages[str(benchmark.path)]
        report = BenchmarkReport(
            file=benchmark.path,
            rows=benchmark.rows,
            fields=_field_texts(benchmark, unit_counts),
            rows_without_text=dict(benchmark.rows_without_text),
            ngrams=ngram_count,
            documents=passages.total(),
            drop_rate=passages.total() / max(1, documents),
            documents_by_longest_passage_units={name: passages[name] for name in PASSAGE_CLASSES.values()},
            frequent_ngrams=counter.most_frequent(str(benchmark.path), short=False),
            frequent_short_texts=counter.most_frequent(str(benchmark.path), short=True),
        )
        reports.append(report)
    return tuple(reports)


def _field_texts(benchmark: Benchmark, unit_counts: Iterator[int]) -> dict[str, FieldTexts]:
    """Count the texts of each field; takes one number from `unit_counts` per text."""
    by_field: dict[str, FieldTexts] = defaultdict(FieldTexts)
    for text, unit_count in zip(benchmark.texts, unit_counts, strict=False):
        counts = by_field[text.field]
        counts.texts += 1
        if unit_count >= NGRAM_UNITS:
            counts.matched_by_ngrams += 1
        elif text.is_question and unit_count >= SHORTEST_UNITS:
            counts.matched_as_a_whole += 1
        else:
            counts.too_short += 1
    return dict(by_field)


class DropCounter:
    """Counts dropped documents by benchmark and n-gram; memory grows with the n-grams, not with the documents.

    `passages` counts the documents that each benchmark dropped, by the class of their longest passage.
    """

    def __init__(self) -> None:
        self.passages: dict[str, Counter[str]] = defaultdict(Counter)
        self._ngrams: dict[tuple[str, str], FrequentMatch] = {}  # by benchmark and n-gram

    def add(self, document: DroppedDocument) -> None:
        """Count a document."""
        longest_of_ngram: dict[tuple[str, str], int] = defaultdict(int)
        longest_of_benchmark: dict[str, int] = defaultdict(int)
        for match in document.matches:
            key = (match.benchmark, match.ngram)
            self._ngrams.setdefault(key, FrequentMatch(0, 0, document.file, document.line, match))
            longest_of_ngram[key] = max(longest_of_ngram[key], match.passage_units)
            longest_of_benchmark[match.benchmark] = max(longest_of_benchmark[match.benchmark], match.passage_units)
        for key, longest in longest_of_ngram.items():
            ngram = self._ngrams[key]
            ngram.documents += 1
            ngram.longest_passage_units = max(ngram.longest_passage_units, longest)
        for benchmark, longest in longest_of_benchmark.items():
            name = next(name for units, name in PASSAGE_CLASSES.items() if longest >= units)
            self.passages[benchmark][name] += 1

    def most_frequent(self, benchmark: str, *, short: bool) -> tuple[FrequentMatch, ...]:
        """Return the LISTED n-grams, or short questions, of a benchmark that dropped the most documents."""
        found = [
            ngram
            for (name, _), ngram in self._ngrams.items()
            if name == benchmark and (ngram.match.units < NGRAM_UNITS) == short
        ]
        return tuple(sorted(found, key=lambda ngram: (-ngram.documents, ngram.match.ngram))[:LISTED])
