"""Tokens of a step -> two 64-bit numbers, the same however the step is cut into ranks and microbatches.

A sample's hash is multilinear modulo 2^64 (Carter and Wegman, "New hash functions", 1981) with fixed odd keys, so that
one changed token never goes unseen; it is mixed with the sample's number, so that samples cannot trade places. A
step's is the sum over its samples. It finds faults, not forgers. `training.ledger` computes the same on the device.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from megatron_dsmath.data.mixture.permutation import IntArray, Words, mix

GOLDEN = 0x9E3779B97F4A7C15  # 2^64 over the golden ratio: multiples of it are spread evenly


class StepHash(NamedTuple):
    """Modulo 2^64: the sum of the samples' hashes, and the sum of each times its sample's number."""

    total: int
    moment: int


def position_keys(length: int) -> Words:
    """The odd number by which the token at each position is multiplied: uint64 [length]."""
    keys: Words = mix(np.arange(1, length + 1, dtype=np.uint64) * np.uint64(GOLDEN)) | np.uint64(1)
    return keys


def sample_hashes(tokens: IntArray, samples: IntArray) -> Words:
    """The hash of each row of `tokens`, int64 [n, length], which are the `samples`, int64 [n]: uint64 [n]."""
    return mix(tokens.view(np.uint64) @ position_keys(tokens.shape[1]) + samples.view(np.uint64) * np.uint64(GOLDEN))


def step_hash(hashes: Words, samples: IntArray) -> StepHash:
    """The hash of a step from those of its samples, uint64 [n], and their numbers, int64 [n]."""
    return StepHash(int(hashes.sum()), int((hashes * samples.view(np.uint64)).sum()))


def differing_sample(found: StepHash, hashes: Words, samples: IntArray) -> int | None:
    """The place of the one sample whose hash was another when `found` was computed; None if that explains nothing.

    With one difference d at sample s, the totals differ by d and the moments by s * d.
    """
    expected = step_hash(hashes, samples)
    total, moment = np.array([found.total, found.moment], np.uint64) - np.array(expected, np.uint64)
    places = np.flatnonzero(samples.view(np.uint64) * total == moment)
    return int(places[0]) if len(places) == 1 else None
