"""Maps the number of a sample to its corpus and its number within that corpus, without an index or counters.

The corpora are the leaves of a binary tree. Of the first m samples that reach a node, the left child gets
m * left_weight / weight, rounded to the nearest integer, and the right child the rest. `locate` follows a sample down
the tree; `counts` does the same for a prefix. All arithmetic is in integers.

Every prefix is within 2 samples of the weights. A rounding errs by at most 1/2, and a child inherits its parent's
deviation times its share p of the parent. In a Huffman tree, a node with children a >= b has a sibling of at least a.
So an inner node has p <= 2/3, and two successive shares multiply to at most a / (2a + b) <= 1/2. The deviation of a
leaf is at most 1/2 * (1 + 1 + 1/2 * T) = 11/6 samples, where T = 1 + 2/3 + T/2 = 10/3.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from heapq import heapify, heappop, heappush
from itertools import accumulate, pairwise
from math import isfinite, lcm
from typing import NamedTuple

import numpy as np

from megatron_dsmath.data.mixture.permutation import IntArray
from megatron_dsmath.errors import ConfigError

LARGEST_TOTAL = 2**31  # products of two weights stay within int64
PREFIXES_AT_ONCE = 2**20


class Draw(NamedTuple):
    """`corpus`: int64 [n], index into `Blend.names`. `number`: int64 [n], number of the sample within the corpus."""

    corpus: IntArray
    number: IntArray


@dataclass(frozen=True)
class _Node:
    """An inner node of the tree. A child is another node or the index of a corpus."""

    weight: int
    left_weight: int
    left: _Node | int
    right: _Node | int

    def left_count(self, samples: IntArray) -> IntArray:
        """Return how many of the first `samples` at this node go left; exact, without int64 overflow."""
        rounds, rest = divmod(samples, self.weight)
        return rounds * self.left_weight + (rest * self.left_weight + self.weight // 2) // self.weight


class Blend:
    """A mixture of corpora by token weight. All samples have the same length, so it counts samples."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Take weights by corpus name, in any unit. Raises ConfigError unless each is finite and above zero."""
        for name, weight in weights.items():
            if not (isfinite(weight) and weight > 0):
                raise ConfigError(
                    "the weight of a corpus is not a positive number",
                    where=f"data.corpora.{name}.weight",
                    found=weight,
                    expected="a number above 0, relative to the other weights",
                    fix="remove the corpus if the run does not use it",
                )
        self.names = tuple(weights)
        fractions = [Fraction(str(weight)) for weight in weights.values()]  # 0.56 is exactly 14/25
        self.shares = tuple(weight / sum(fractions) for weight in fractions)
        integer_weights = _integer_weights(dict(zip(self.names, self.shares, strict=True)))
        self._weights = tuple(integer_weights[name] for name in self.names)
        self._tree = _huffman_tree(tuple(zip(self._weights, self.names, strict=True)))

    def locate(self, samples: IntArray) -> Draw:
        """Return corpus and number of each of `samples`, int64 [n], in time that does not grow with their numbers."""
        draw = Draw(np.empty_like(samples), np.empty_like(samples))
        for corpus, rows, numbers in _draw(self._tree, np.arange(len(samples)), samples):
            draw.corpus[rows], draw.number[rows] = corpus, numbers
        return draw

    def counts(self, samples: IntArray) -> IntArray:
        """Return how many of the first `samples`, int64 [n], each corpus gets: int64 [n, corpora]."""
        counts = np.empty((len(samples), len(self.names)), np.int64)
        for corpus, count in _count(self._tree, samples):
            counts[:, corpus] = count
        return counts

    def largest_deviations(self, samples: int) -> tuple[float, ...]:
        """Return the largest deviation of each corpus from its weight over all prefixes of `samples`, in samples.

        The mixture repeats after as many samples as the sum of its reduced weights (56/4/10/20/10: 50), so only one
        period is computed. An upper bound if the reduced weights add up to more than 2^31 and were rounded.
        """
        total, weights = sum(self._weights), np.array(self._weights)
        largest = np.zeros(len(self.names), np.int64)
        end = min(samples, total)
        for start in range(0, end, PREFIXES_AT_ONCE):
            prefixes = np.arange(start, min(start + PREFIXES_AT_ONCE, end)) + 1
            deviations = np.abs(self.counts(prefixes) * total - prefixes[:, None] * weights)
            largest = np.maximum(largest, deviations.max(axis=0))
        drifts = [abs(Fraction(w, total) - share) for w, share in zip(self._weights, self.shares, strict=True)]
        return tuple(
            float(Fraction(int(deviation), total) + samples * drift)
            for deviation, drift in zip(largest, drifts, strict=True)
        )


def _integer_weights(shares: Mapping[str, Fraction]) -> dict[str, int]:
    """Return the shares as integers without a common divisor.

    Shares of more than nine digits would add up to more than 2^31; they are rounded so that they add up to 2^31. That
    changes a share by at most 2^-31: 0.06 samples in 122 million.
    """
    unit = lcm(*(share.denominator for share in shares.values()))  # the sum of the integers
    if unit <= LARGEST_TOTAL:
        return {name: int(share * unit) for name, share in shares.items()}
    by_name = sorted(shares)
    sums = accumulate((shares[name] for name in by_name), initial=Fraction(0))
    bounds = pairwise(round(bound * LARGEST_TOTAL) for bound in sums)
    return {name: max(1, stop - start) for name, (start, stop) in zip(by_name, bounds, strict=True)}


def _huffman_tree(weights: Sequence[tuple[int, str]]) -> _Node | int:
    """Join the two lightest nodes until one is left; names break ties, so the order of entries does not matter."""
    heap: list[tuple[int, str, _Node | int]] = [(*entry, corpus) for corpus, entry in enumerate(weights)]
    heapify(heap)
    while len(heap) > 1:
        (lighter, _, left), (heavier, name, right) = heappop(heap), heappop(heap)
        heappush(heap, (lighter + heavier, name, _Node(lighter + heavier, lighter, left, right)))
    return heap[0][2]


def _draw(node: _Node | int, rows: IntArray, numbers: IntArray) -> Iterator[tuple[int, IntArray, IntArray]]:
    """Yield each corpus with the `rows` of its samples and their numbers within it."""
    if isinstance(node, int):
        yield node, rows, numbers
        return
    before = node.left_count(numbers)
    goes_left = node.left_count(numbers + 1) > before
    yield from _draw(node.left, rows[goes_left], before[goes_left])
    yield from _draw(node.right, rows[~goes_left], (numbers - before)[~goes_left])


def _count(node: _Node | int, samples: IntArray) -> Iterator[tuple[int, IntArray]]:
    """Yield each corpus with how many of the first `samples` at `node` it gets."""
    if isinstance(node, int):
        yield node, samples
        return
    left = node.left_count(samples)
    yield from _count(node.left, left)
    yield from _count(node.right, samples - left)
