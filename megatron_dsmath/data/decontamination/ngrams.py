"""Runs of units that stand in benchmarks: found in other texts by hash, confirmed unit by unit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.decontamination.text_units import Flags, Hashes, Positions, Units

NGRAM_UNITS = 10  # DeepSeekMath, section 2.1.1
SHORTEST_UNITS = 3  # of a text that is matched as a whole; the same section
FILTER_BITS = 64  # for a hash: of other hashes, at most one in 64 passes
SMALLEST_FILTER_WIDTH = 20  # 128 KiB, which stay in the processor's cache
_MULTIPLIER = 0xBF58476D1CE4E5B9  # odd, so that no bit of a unit's hash is lost
_POWERS = [np.uint64(_MULTIPLIER**power % (1 << 64)) for power in range(NGRAM_UNITS)]


class Passage(NamedTuple):
    """`unit_count` units of text number `text`, from unit `start` on, that stand in a benchmark.

    They begin with the n-gram `entry` of the table for `length` units. A length below 10 means a whole short text.
    """

    text: int
    start: int
    unit_count: int
    benchmark: int
    length: int
    entry: int


class HashFilter:
    """Says of hashes whether they may be in a set, by a bit for each value that the first bits of a hash can have."""

    def __init__(self, hashes: Hashes) -> None:
        width = max(SMALLEST_FILTER_WIDTH, (len(hashes) * FILTER_BITS - 1).bit_length())
        self._shift = np.uint64(64 - width)
        is_there = np.zeros(1 << width, bool)
        is_there[hashes >> self._shift] = True
        self._bits = np.packbits(is_there, bitorder="little")

    def may_hold(self, hashes: Hashes) -> Positions:
        """Which of `hashes` may be there."""
        slots = (hashes >> self._shift).view(np.int64)
        bits = self._bits.take(slots >> 3) >> (slots & 7).astype(np.uint8)
        return np.flatnonzero(bits & np.uint8(1))


class NgramTable:
    """The distinct n-grams of one length in each benchmark; entry e has `hashes[e]`, ascending.

    It stands in benchmark `benchmarks[e]`, there first at unit `positions[e]`, and in `row_counts[e]` rows of it. Of
    two n-grams of one benchmark with the same hash (among 2 million, a chance of 1e-7) only the first is here.
    """

    def __init__(self, hashes: Hashes, positions: Positions, rows: Positions, benchmarks: Positions) -> None:
        """Of every n-gram, in the order of the benchmarks: its hash, first unit, row and benchmark."""
        order = np.argsort(hashes, kind="stable")
        hashes, rows, benchmarks = hashes[order], rows[order], benchmarks[order]
        is_new = _changes(hashes) | _changes(benchmarks)
        firsts = np.flatnonzero(is_new)
        self.hashes = hashes[firsts]
        self.positions = positions[order][firsts].astype(np.int32)
        self.benchmarks = benchmarks[firsts].astype(np.int32)
        self.row_counts = np.add.reduceat(is_new | _changes(rows), firsts, dtype=np.int32)

    def find(self, hashes: Hashes) -> tuple[Positions, Positions]:
        """Which of `hashes` are here, ascending, and as which entry: a pair for each benchmark that has the n-gram."""
        left = np.searchsorted(self.hashes, hashes, "left")
        counts = np.searchsorted(self.hashes, hashes, "right") - left
        skipped = left - (np.cumsum(counts) - counts)
        return np.repeat(np.arange(len(hashes)), counts), np.repeat(skipped, counts) + np.arange(counts.sum())


class BenchmarkNgrams:
    """Every 10-gram of some texts, and every short text that is to be matched as a whole."""

    def __init__(self, units: Units, rows: Positions, benchmarks: Positions, matched_when_short: Flags) -> None:
        """Of every text in `units`: its row and its benchmark, both in order, and whether 3 to 9 units are enough."""
        # 4 bytes hold a place in 2 billion characters, of which a benchmark has a thousandth.
        self.units = units._replace(starts=units.starts.astype(np.int32), ends=units.ends.astype(np.int32))
        self.tables: dict[int, NgramTable] = {}
        unit_counts = np.diff(units.firsts)
        for length in range(SHORTEST_UNITS, NGRAM_UNITS + 1):
            hashes = _ngram_hashes(units.hashes, length)
            if length == NGRAM_UNITS:
                starts = np.arange(len(hashes))
                starts = starts[starts + length <= units.stops_of(starts)]
            else:
                starts = units.firsts[:-1][(unit_counts == length) & matched_when_short]
            texts = units.texts_of(starts)
            self.tables[length] = NgramTable(hashes[starts], starts, rows[texts], benchmarks[texts])
        short = units.firsts[:-1][(unit_counts >= SHORTEST_UNITS) & (unit_counts < NGRAM_UNITS) & matched_when_short]
        self._filter = HashFilter(self.tables[NGRAM_UNITS].hashes)
        self._openings = HashFilter(_ngram_hashes(units.hashes, SHORTEST_UNITS)[short])  # of the short texts

    def passages(self, units: Units) -> Iterator[Passage]:
        """Every passage of `units` that stands in a benchmark: 10-grams before short texts, by benchmark and place.

        A passage goes on for as long as it does where its first 10-gram first stands in that benchmark; the 10-grams
        within it are not looked at again.
        """
        for length, starts, hashes in self._candidates(units.hashes):
            found, entries = self.tables[length].find(hashes)
            starts = starts[found]
            is_within_text = starts + length <= units.stops_of(starts)
            starts, entries = starts[is_within_text], entries[is_within_text]
            benchmarks = self.tables[length].benchmarks[entries]
            for benchmark in np.unique(benchmarks).tolist():
                is_here = benchmarks == benchmark
                yield from self._passages(units, length, benchmark, starts[is_here], entries[is_here])

    def _candidates(self, unit_hashes: Hashes) -> Iterator[tuple[int, Positions, Hashes]]:
        """Of each length: the units at which an n-gram of a benchmark may begin, and the hash of the n-gram there."""
        hashes = _ngram_hashes(unit_hashes, NGRAM_UNITS)
        starts = self._filter.may_hold(hashes)
        yield NGRAM_UNITS, starts, hashes[starts]
        starts = self._openings.may_hold(_ngram_hashes(unit_hashes, SHORTEST_UNITS))
        for length in range(SHORTEST_UNITS, NGRAM_UNITS):
            starts = starts[starts + length <= len(unit_hashes)]
            yield length, starts, _ngram_hashes_at(unit_hashes, starts, length)

    def _passages(
        self, units: Units, length: int, benchmark: int, starts: Positions, entries: Positions
    ) -> Iterator[Passage]:
        """The passages among those that seem to begin at `starts` with n-grams of one benchmark."""
        positions = self.tables[length].positions[entries]
        longest = np.minimum(units.stops_of(starts) - starts, self.units.stops_of(positions) - positions)
        places = zip(starts.tolist(), positions.tolist(), longest.tolist(), entries.tolist(), strict=True)
        covered = 0
        for start, position, at_most, entry in places:
            if start + length <= covered or units.words(start, length) != self.units.words(position, length):
                continue  # within the passage before, or another n-gram with the same hash
            count = length
            if length == NGRAM_UNITS:
                count = _equal_count(units.hashes[start:], self.units.hashes[position:], at_most)
            covered = start + count
            yield Passage(int(units.texts_of(start)), start, count, benchmark, length, entry)


def _ngram_hashes(unit_hashes: Hashes, length: int) -> Hashes:
    """The hash of the n-gram that begins at each unit, also of those that run into the next text.

    An n-gram's hash is the polynomial of its units' hashes, here put together of halves.
    """
    if length == 1:
        return unit_hashes
    half = length // 2
    halves = _ngram_hashes(unit_hashes, half)
    hashes: Hashes = halves[:-half] * _POWERS[half] + halves[half:]
    if length % 2 == 1:
        hashes = hashes[:-1] * _POWERS[1] + unit_hashes[length - 1 :]
    return hashes


def _ngram_hashes_at(unit_hashes: Hashes, starts: Positions, length: int) -> Hashes:
    """The same for the n-grams that begin at some units."""
    hashes: Hashes = unit_hashes[starts]
    for number in range(1, length):
        hashes = hashes * _POWERS[1] + unit_hashes[starts + number]
    return hashes


def _equal_count(ours: Hashes, theirs: Hashes, at_most: int) -> int:
    """How many units are equal from the start on."""
    differ = ours[:at_most] != theirs[:at_most]
    return int(np.argmax(differ)) if differ.any() else at_most


def _changes(values: npt.NDArray[np.generic]) -> Flags:
    """Where a value is not the one before it; the first is new."""
    changes = np.ones(len(values), bool)
    changes[1:] = values[1:] != values[:-1]
    return changes
