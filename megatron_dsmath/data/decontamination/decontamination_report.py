"""What decontamination read, kept and dropped, and what each benchmark was the reason of."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from megatron_dsmath.data.decontamination.benchmark_texts import Benchmark
from megatron_dsmath.data.decontamination.ngrams import NGRAM_UNITS, SHORTEST_UNITS, BenchmarkNgrams

LISTED = 20  # n-grams of each benchmark: those that dropped the most documents
# A copied question is an unlikely reason for a hit when the n-gram
MANY_DOCUMENTS = 10  # stands in so many documents,
COPIED_UNITS = 20  # none of which goes on as the benchmark does for so many units;
TEMPLATE_ROWS = 3  # or when so many rows of the benchmark share it; or when it holds no word.
PASSAGE_CLASSES = {50: "50 or more", 20: "20 to 49", 13: "13 to 19", 10: "10 to 12", 3: "3 to 9"}

Key = tuple[str, str]  # a benchmark and an n-gram of it


@dataclass(frozen=True)
class Match:
    """A passage of a document that stands in a benchmark too.

    It begins with `ngram`, which has `units` units: 10, or 3 to 9 when it is a whole text of the benchmark. `rows` rows
    of the benchmark hold it; the first is line `row`, in which the text of `field` goes on as the document does, in all
    for `passage_units` units. ⟦ ⟧ enclose these in both texts.
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
class Dropped:
    """A document that shares something with a benchmark."""

    file: str
    line: int
    matches: Sequence[Match]


@dataclass(frozen=True)
class FrequentMatch:
    """An n-gram, or a whole short text, that dropped `documents`, and its match in the first of them.

    `false_hit_signs` say why it looks like a false hit; none where it does not.
    """

    documents: int
    longest_passage_units: int
    false_hit_signs: tuple[str, ...]
    file: str
    line: int
    match: Match


@dataclass(frozen=True)
class Hits:
    """The documents that one benchmark dropped; in `looking_false` of them, every match with it looks like a false hit.

    A document counts once in `documents_by_longest_passage_units`.
    """

    documents: int
    looking_false: int
    documents_by_longest_passage_units: dict[str, int]
    frequent_ngrams: tuple[FrequentMatch, ...]
    frequent_short_texts: tuple[FrequentMatch, ...]


@dataclass
class _Ngram:
    units: int
    rows: int
    documents: int = 0
    longest_passage_units: int = 0

    def false_hit_signs(self, ngram: str) -> tuple[str, ...]:
        return tuple(self._false_hit_signs(ngram))

    def _false_hit_signs(self, ngram: str) -> Iterator[str]:
        if not any(map(_is_word, ngram.split())):
            yield "no word in it"
        if self.rows >= TEMPLATE_ROWS:
            yield f"in {self.rows:,} rows of the benchmark"
        if self.documents >= MANY_DOCUMENTS and self.longest_passage_units < COPIED_UNITS:
            yield f"in {self.documents:,} documents, never more than {self.longest_passage_units} units of the text"


class Tally:
    """Memory grows with the distinct n-grams that were hit, not with the documents."""

    def __init__(self) -> None:
        self._ngrams: dict[Key, _Ngram] = {}
        self._passages: dict[str, Counter[str]] = defaultdict(Counter)  # by benchmark and class

    def add(self, dropped: Dropped) -> None:
        """Count a document."""
        longest_of_ngram: dict[Key, int] = defaultdict(int)
        longest_of_benchmark: dict[str, int] = defaultdict(int)
        for match in dropped.matches:
            key = (match.benchmark, match.ngram)
            self._ngrams.setdefault(key, _Ngram(match.units, match.rows))
            longest_of_ngram[key] = max(longest_of_ngram[key], match.passage_units)
            longest_of_benchmark[match.benchmark] = max(longest_of_benchmark[match.benchmark], match.passage_units)
        for key, longest in longest_of_ngram.items():
            ngram = self._ngrams[key]
            ngram.documents += 1
            ngram.longest_passage_units = max(ngram.longest_passage_units, longest)
        for benchmark, longest in longest_of_benchmark.items():
            name = next(name for units, name in PASSAGE_CLASSES.items() if longest >= units)
            self._passages[benchmark][name] += 1

    def result(self, benchmarks: Sequence[str], dropped: Iterable[Dropped]) -> tuple[dict[str, Hits], int]:
        """What each of `benchmarks` dropped, and in how many documents every match looks like a false hit.

        `dropped`: the documents that were added, once more and in the same order.
        """
        signs = {key: ngram.false_hit_signs(key[1]) for key, ngram in self._ngrams.items()}
        listed = self._most_frequent()
        examples: dict[Key, FrequentMatch] = {}
        looking_false: Counter[str] = Counter()
        looking_false_throughout = 0
        for document in dropped:
            sharing = {match.benchmark for match in document.matches}
            convincing = {match.benchmark for match in document.matches if not signs[match.benchmark, match.ngram]}
            looking_false.update(sharing - convincing)
            looking_false_throughout += not convincing
            for match in document.matches:
                key = (match.benchmark, match.ngram)
                if key in listed and key not in examples:
                    ngram = self._ngrams[key]
                    examples[key] = FrequentMatch(
                        ngram.documents, ngram.longest_passage_units, signs[key], document.file, document.line, match
                    )
        hits = {}
        for benchmark in benchmarks:
            frequent = [examples[key] for key in listed if key[0] == benchmark]
            passages = self._passages[benchmark]
            hits[benchmark] = Hits(
                documents=passages.total(),
                looking_false=looking_false[benchmark],
                documents_by_longest_passage_units={name: passages[name] for name in PASSAGE_CLASSES.values()},
                frequent_ngrams=tuple(example for example in frequent if example.match.units == NGRAM_UNITS),
                frequent_short_texts=tuple(example for example in frequent if example.match.units < NGRAM_UNITS),
            )
        return hits, looking_false_throughout

    def _most_frequent(self) -> list[Key]:
        """Of each benchmark the n-grams, and apart from them the short texts, that dropped the most documents."""
        listed = []
        counts: Counter[tuple[str, bool]] = Counter()
        for key, ngram in sorted(self._ngrams.items(), key=lambda item: (-item[1].documents, item[0])):
            kind = (key[0], ngram.units < NGRAM_UNITS)
            counts[kind] += 1
            if counts[kind] <= LISTED:
                listed.append(key)
        return listed


def _is_word(unit: str) -> bool:
    """Whether it is a Han character or has two letters, which LaTeX commands and numbers do not count as."""
    return unit.isalpha() and (len(unit) > 1 or unit >= "\u3005")


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
