"""What a worker of the decontamination does: tell, of some lines, which share something with a benchmark."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from megatron_dsmath.data.decontamination.benchmark_texts import Benchmark
from megatron_dsmath.data.decontamination.ngrams import BenchmarkNgrams, Passage
from megatron_dsmath.data.decontamination.tally import Match
from megatron_dsmath.data.decontamination.text_units import Units, split
from megatron_dsmath.data.documents import parse_document
from megatron_dsmath.data.line_batches import LineBatch
from megatron_dsmath.errors import DataError


class Screened(NamedTuple):
    """Of a batch: what stands in benchmarks and what is no document, by the index of the line in the batch."""

    matches: dict[int, list[Match]]
    bad_lines: dict[int, DataError]
    unit_count: int


class Screen:
    """The n-grams of all benchmarks. About 45 bytes for each unit of their texts; each worker is sent one."""

    def __init__(self, benchmarks: Sequence[Benchmark], fields: Sequence[str]) -> None:
        """`fields` of a line, one after the other, are its document."""
        self._fields = fields
        texts = [text for benchmark in benchmarks for text in benchmark.texts]
        self._names = [str(benchmark.path) for benchmark in benchmarks]
        self._places = [(text.row, text.field) for text in texts]
        rows = np.array([text.row for text in texts])
        owners = np.repeat(np.arange(len(benchmarks)), [len(benchmark.texts) for benchmark in benchmarks])
        is_question = np.array([text.is_question for text in texts], bool)
        self.ngrams = BenchmarkNgrams(split([text.text for text in texts]), rows, owners, is_question)

    def __call__(self, batch: LineBatch) -> Screened:
        """Screen one batch."""
        indexes, texts = [], []
        bad_lines = {}
        for index, line in enumerate(batch.lines):
            try:
                texts.append("\n".join(parse_document(batch.path, line, self._fields).texts))
                indexes.append(index)
            except DataError as error:
                bad_lines[index] = error
        units = split(texts)
        matches: dict[int, list[Match]] = defaultdict(list)
        for passage in self.ngrams.passages(units):
            matches[indexes[passage.text]].append(self._match(units, passage))
        return Screened(dict(matches), bad_lines, len(units.starts))

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
