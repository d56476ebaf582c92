"""Sample number -> (corpus, its sample number): the mixture as arithmetic, with no index and no counters.

The corpora are the leaves of a binary tree. Of the first m samples that reach a node, its left child gets
m * left / weight, rounded to the nearest whole number, and its right child the rest. So any sample is found by going
down the tree, and any prefix is counted the same way, in integers only.

Why every prefix is within 2 samples of the weights: a rounding is off by at most 1/2, and a child inherits its
parent's deviation times its share p of the parent. In a Huffman tree a node with children a >= b has a sibling of at
least a, so an inner node has p <= 2/3, and two successive shares multiply to at most a / (2a + b) <= 1/2. From the
leaf up: 1/2 * (1 + 1 + 1/2 * T) = 11/6 samples at most, where T = 1 + 2/3 + T/2 = 10/3.
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
    """`corpus`: int64 [n], the place of its name in `Blend.names`. `number`: int64 [n], which sample of it, from 0."""

    corpus: IntArray
    number: IntArray


@dataclass(frozen=True)
class _Fork:
    """Two groups of corpora that share the samples which reach this node; a single corpus stands as its place."""

    weight: int
    left_weight: int
    left: _Fork | int
    right: _Fork | int

    def left_count(self, samples: IntArray) -> IntArray:
        """How many of the first `samples` that reach this node go left: exact, and never beyond int64."""
        rounds, rest = divmod(samples, self.weight)
        return rounds * self.left_weight + (rest * self.left_weight + self.weight // 2) // self.weight


class Blend:
    """A mixture of corpora by token weight; samples of all corpora are equally long, so samples are counted."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        """Weights by corpus name, in any unit. Raises ConfigError for one that is not a finite number above zero."""
        for name, weight in weights.items():
            if not (isfinite(weight) and weight > 0):
                raise ConfigError(
                    "a corpus cannot have this weight",
                    where=f"data.corpora.{name}.weight",
                    found=weight,
                    expected="a number above 0: its share of the tokens, relative to the other weights",
                    fix="remove the corpus if nothing is to be drawn from it",
                )
        self.names = tuple(weights)
        written = [Fraction(str(weight)) for weight in weights.values()]  # 0.56 is 14/25, whatever the machine
        self.shares = tuple(weight / sum(written) for weight in written)
        whole_weights = _whole_weights(dict(zip(self.names, self.shares, strict=True)))
        self._weights = tuple(whole_weights[name] for name in self.names)
        self._tree = _huffman_tree(tuple(zip(self._weights, self.names, strict=True)))

    def locate(self, samples: IntArray) -> Draw:
        """Which sample of which corpus each of `samples`, int64 [n], is; no longer for a late sample than for 0."""
        draw = Draw(np.empty_like(samples), np.empty_like(samples))
        for corpus, rows, numbers in _draw(self._tree, np.arange(len(samples)), samples):
            draw.corpus[rows], draw.number[rows] = corpus, numbers
        return draw

    def counts(self, samples: IntArray) -> IntArray:
        """How many of the first `samples`, int64 [n], each corpus gets: int64 [n, corpora]."""
        counts = np.empty((len(samples), len(self.names)), np.int64)
        for corpus, count in _count(self._tree, samples):
            counts[:, corpus] = count
        return counts

    def largest_deviations(self, samples: int) -> tuple[float, ...]:
        """How far, in samples, each corpus strays at most from its weight in the first 1, 2, ... `samples`.

        Computed over every prefix; the mixture repeats after as many samples as its reduced weights add up to
        (56/4/10/20/10: 50), and so do the deviations. With reduced weights that add up to more than 2^31, which are
        rounded, an upper bound.
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


def _whole_weights(shares: Mapping[str, Fraction]) -> dict[str, int]:
    """The shares as integers without a common divisor.

    If they add up to more than 2^31 (shares of more than nine digits), they are rounded so that they do. That moves
    a share by at most 2^-31: 0.06 samples in 122 million.
    """
    unit = lcm(*(share.denominator for share in shares.values()))  # then the integers add up to it
    if unit <= LARGEST_TOTAL:
        return {name: int(share * unit) for name, share in shares.items()}
    by_name = sorted(shares)
    sums = accumulate((shares[name] for name in by_name), initial=Fraction(0))
    bounds = pairwise(round(bound * LARGEST_TOTAL) for bound in sums)
    return {name: max(1, stop - start) for name, (start, stop) in zip(by_name, bounds, strict=True)}


def _huffman_tree(weights: Sequence[tuple[int, str]]) -> _Fork | int:
    """Join the two lightest nodes until one is left; names break ties, so the order of the entries does not count."""
    heap: list[tuple[int, str, _Fork | int]] = [(*entry, corpus) for corpus, entry in enumerate(weights)]
    heapify(heap)
    while len(heap) > 1:
        (lighter, _, left), (heavier, name, right) = heappop(heap), heappop(heap)
        heappush(heap, (lighter + heavier, name, _Fork(lighter + heavier, lighter, left, right)))
    return heap[0][2]


def _draw(node: _Fork | int, rows: IntArray, numbers: IntArray) -> Iterator[tuple[int, IntArray, IntArray]]:
    """For each corpus: which of the asked samples are its own, and their numbers in it."""
    if isinstance(node, int):
        yield node, rows, numbers
        return
    before = node.left_count(numbers)
    goes_left = node.left_count(numbers + 1) > before
    yield from _draw(node.left, rows[goes_left], before[goes_left])
    yield from _draw(node.right, rows[~goes_left], (numbers - before)[~goes_left])


def _count(node: _Fork | int, samples: IntArray) -> Iterator[tuple[int, IntArray]]:
    """For each corpus: how many of the first `samples` that reach the node are its own."""
    if isinstance(node, int):
        yield node, samples
        return
    left = node.left_count(samples)
    yield from _count(node.left, left)
    yield from _count(node.right, samples - left)
