"""The n-grams of benchmarks, found in other texts by hash and confirmed unit by unit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.decontamination.text_units import Flags, Hashes, Positions, Units

NGRAM_UNITS = 10  # DeepSeekMath, section 2.1.1
SHORTEST_UNITS = 3  # shortest text that is matched as a whole; the same section
FILTER_BITS = 64  # per hash: at most one in 64 other hashes passes
SMALLEST_FILTER_WIDTH = 20  # 128 KiB, which fit in the processor's cache
_MULTIPLIER = 0xBF58476D1CE4E5B9  # odd, so that no bit of a unit's hash is lost
_POWERS = [np.uint64(_MULTIPLIER**power % (1 << 64)) for power in range(NGRAM_UNITS)]


class Passage(NamedTuple):
    """A passage that text number `text` shares with a benchmark: `unit_count` units from unit `start` on.

    It begins with the n-gram `entry` of the table for `length` units. A length below 10 means a whole short text.
    """

    text: int
    start: int
    unit_count: int
    benchmark: int
    length: int
    entry: int


class HashFilter:
    """A set of hashes that may report false members; one bit per value of the first bits of a hash."""

    def __init__(self, hashes: Hashes) -> None:
        width = max(SMALLEST_FILTER_WIDTH, (len(hashes) * FILTER_BITS - 1).bit_length())
        self._shift = np.uint64(64 - width)
        is_there = np.zeros(1 << width, bool)
        is_there[hashes >> self._shift] = True
        self._bits = np.packbits(is_there, bitorder="little")

    def may_hold(self, hashes: Hashes) -> Positions:
        """Return the indices of the `hashes` that may be in the set."""
        slots = (hashes >> self._shift).view(np.int64)
        bits = self._bits.take(slots >> 3) >> (slots & 7).astype(np.uint8)
        return np.flatnonzero(bits & np.uint8(1))


class NgramTable:
    """The distinct n-grams of one length in each benchmark, sorted by hash.

    Entry e has `hashes[e]` and is an n-gram of benchmark `benchmarks[e]`: first at unit `positions[e]`, in
    `row_counts[e]` rows. If two n-grams of one benchmark have the same hash (probability 1e-7 for 2 million), the table
    holds only the first.
    """

    def __init__(self, hashes: Hashes, positions: Positions, rows: Positions, benchmarks: Positions) -> None:
        """Take hash, first unit, row and benchmark of every n-gram, ordered by benchmark."""
        order = np.argsort(hashes, kind="stable")
        hashes, rows, benchmarks = hashes[order], rows[order], benchmarks[order]
        is_new = _changes(hashes) | _changes(benchmarks)
        firsts = np.flatnonzero(is_new)
        self.hashes = hashes[firsts]
        self.positions = positions[order][firsts].astype(np.int32)
        self.benchmarks = benchmarks[firsts].astype(np.int32)
        self.row_counts = np.add.reduceat(is_new | _changes(rows), firsts, dtype=np.int32)

    def find(self, hashes: Hashes) -> tuple[Positions, Positions]:
        """Return pairs of an index into `hashes`, ascending, and an entry: one pair per benchmark with the n-gram."""
        left = np.searchsorted(self.hashes, hashes, "left")
        counts = np.searchsorted(self.hashes, hashes, "right") - left
        skipped = left - (np.cumsum(counts) - counts)
        return np.repeat(np.arange(len(hashes)), counts), np.repeat(skipped, counts) + np.arange(counts.sum())


class BenchmarkNgrams:
    """Every 10-gram of some texts, and every short text that is matched as a whole."""

    def __init__(self, units: Units, rows: Positions, benchmarks: Positions, matched_when_short: Flags) -> None:
        """Take row and benchmark of every text in `units`, both ascending, and whether a short text is matched."""
        # 4 bytes address 2 billion characters, a thousand times the size of a benchmark.
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
        self._openings = HashFilter(_ngram_hashes(units.hashes, SHORTEST_UNITS)[short])

    def find_passages(self, units: Units) -> Iterator[Passage]:
        """Yield every passage that `units` share with a benchmark: 10-grams before short texts, by benchmark and start.

        A passage extends as far as `units` agree with the first occurrence of its first 10-gram in that benchmark; the
        10-grams inside it are not compared again.
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
        """Yield per length the units at which an n-gram of a benchmark may begin, and the hashes of those n-grams."""
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
        """Yield the passages that begin at `starts` with the n-grams `entries` of one benchmark, if the words agree."""
        positions = self.tables[length].positions[entries]
        longest = np.minimum(units.stops_of(starts) - starts, self.units.stops_of(positions) - positions)
        candidates = zip(starts.tolist(), positions.tolist(), longest.tolist(), entries.tolist(), strict=True)
        covered = 0
        for start, position, at_most, entry in candidates:
            if start + length <= covered or units.words(start, length) != self.units.words(position, length):
                continue  # inside the previous passage, or a different n-gram with the same hash
            count = length
            if length == NGRAM_UNITS:
                count = _equal_count(units.hashes[start:], self.units.hashes[position:], at_most)
            covered = start + count
            yield Passage(int(units.texts_of(start)), start, count, benchmark, length, entry)


def _ngram_hashes(unit_hashes: Hashes, length: int) -> Hashes:
    """Return the hash of the n-gram at each unit, including n-grams that cross into the next text.

    An n-gram's hash is a polynomial of its units' hashes, computed here from two halves.
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
    """Return the hashes of the n-grams at `starts`."""
    hashes: Hashes = unit_hashes[starts]
    for number in range(1, length):
        hashes = hashes * _POWERS[1] + unit_hashes[starts + number]
    return hashes


def _equal_count(left: Hashes, right: Hashes, at_most: int) -> int:
    """Return the number of equal units at the start."""
    differ = left[:at_most] != right[:at_most]
    return int(np.argmax(differ)) if differ.any() else at_most


def _changes(values: npt.NDArray[np.generic]) -> Flags:
    """Mark values that differ from the previous one; the first is marked."""
    changes = np.ones(len(values), bool)
    changes[1:] = values[1:] != values[:-1]
    return changes
