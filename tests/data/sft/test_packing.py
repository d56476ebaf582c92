from __future__ import annotations

import random
import time
from bisect import bisect_left, insort

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dsmath.data.sft.packing import POLICIES, Packing, pack

LENGTHS = np.clip(np.random.default_rng(1).lognormal(5.3, 0.6, 20_000), 12, 4096).astype(np.int32)
FEW = st.lists(st.integers(1, 64), min_size=1, max_size=80).map(lambda lengths: np.array(lengths, np.int32))


def packed(lengths: np.ndarray, policy: str, capacity: int = 4096, *label: object) -> Packing:
    return pack(lengths, np.arange(len(lengths)), capacity, policy, *(label or ("seed", 0)))


def fills(packing: Packing) -> list[int]:
    return [
        int(packing.token_counts[slice(*bounds)].sum())
        for bounds in np.stack([packing.bounds[:-1], packing.bounds[1:]], 1)
    ]


def next_fit(lengths: list[int], capacity: int) -> list[int]:
    """Sequences filled in order, as the paper describes it."""
    filled = [0]
    for length in lengths:
        if filled[-1] + length > capacity:
            filled.append(0)
        filled[-1] += length
    return filled


def best_fit_decreasing(lengths: list[int], capacity: int) -> int:
    """The number of sequences of the textbook algorithm."""
    rooms: list[int] = []
    count = 0
    for length in sorted(lengths, reverse=True):
        index = bisect_left(rooms, length)
        if index == len(rooms):
            count += 1
            room = capacity
        else:
            room = rooms.pop(index)
        insort(rooms, room - length)
    return count


@pytest.mark.parametrize("policy", POLICIES)
@settings(deadline=None)
@given(lengths=FEW, seed=st.integers(0, 5))
def test_no_token_of_any_example_is_lost_or_doubled(policy: str, lengths: np.ndarray, seed: int) -> None:
    packing = packed(lengths, policy, 64, seed)
    seen = np.zeros((len(lengths), 64), np.int64)
    parts = zip(packing.examples, packing.first_tokens, packing.token_counts, strict=True)
    for example, first, count in parts:
        assert count > 0
        seen[example, first : first + count] += 1
    assert (seen == (np.arange(64) < lengths[:, None])).all()
    assert packing.bounds[0] == 0 and packing.bounds[-1] == len(packing.examples)
    assert all(0 < fill <= 64 for fill in fills(packing))
    if policy != "split":
        assert sorted(packing.examples.tolist()) == list(range(len(lengths)))


@settings(deadline=None)
@given(lengths=FEW)
def test_next_fit_is_the_paper_s_concatenation_of_the_same_order(lengths: np.ndarray) -> None:
    packing = packed(lengths, "next-fit", 64)
    assert fills(packing) == next_fit(lengths[packing.examples].tolist(), 64)


@settings(deadline=None)
@given(lengths=FEW)
def test_best_fit_needs_as_many_sequences_as_the_textbook(lengths: np.ndarray) -> None:
    assert packed(lengths, "best-fit", 64).sequence_count == best_fit_decreasing(lengths.tolist(), 64)


@settings(deadline=None)
@given(lengths=FEW)
def test_split_fills_every_sequence_but_the_last(lengths: np.ndarray) -> None:
    *full, last = fills(packed(lengths, "split", 64))
    assert set(full) <= {64} and last == int(lengths.sum()) - 64 * len(full)


def test_random_concatenation_fills_as_a_simulated_next_fit_does() -> None:
    """Within half a point, over orders drawn by another generator."""
    lengths = LENGTHS.tolist()
    random.Random(7).shuffle(lengths)
    simulated = sum(lengths) / (4096 * len(next_fit(lengths, 4096)))
    ours = sum(lengths) / (4096 * packed(LENGTHS, "next-fit").sequence_count)
    assert abs(ours - simulated) < 0.005


def test_best_fit_fills_99_and_a_half_percent() -> None:
    packing = packed(LENGTHS, "best-fit")
    assert LENGTHS.sum() / (4096 * packing.sequence_count) >= 0.995


@pytest.mark.parametrize("policy", POLICIES)
def test_an_epoch_depends_only_on_its_label(policy: str) -> None:
    first, again, other = (packed(LENGTHS, policy, 4096, "seed", epoch) for epoch in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert first.examples[:500].tolist() != other.examples[:500].tolist()


@pytest.mark.parametrize("policy", POLICIES)
def test_each_epoch_has_other_neighbours(policy: str) -> None:
    """Two examples of 20,000 meet again in under 1% of cases; best fit has few partners for the longest."""

    def pairs(epoch: int) -> set[tuple[int, int]]:
        packing = packed(LENGTHS, policy, 4096, "seed", epoch)
        sequence = np.repeat(np.arange(packing.sequence_count), np.diff(packing.bounds))
        same = np.flatnonzero(np.diff(sequence) == 0)
        return {
            (min(pair), max(pair))
            for pair in zip(packing.examples[same].tolist(), packing.examples[same + 1].tolist(), strict=True)
        }

    first, second = pairs(0), pairs(1)
    assert len(first & second) < (0.1 if policy == "best-fit" else 0.01) * len(first)


@pytest.mark.parametrize("policy", POLICIES)
def test_sequences_are_not_sorted_by_size(policy: str) -> None:
    packing = packed(LENGTHS, policy)
    parts = np.diff(packing.bounds)
    half = len(parts) // 2
    spread = parts.std() / half**0.5  # of the mean of half of them
    assert abs(parts[:half].mean() - parts[half:].mean()) < 6 * spread


@pytest.mark.parametrize("policy", POLICIES)
def test_an_example_may_be_in_an_epoch_twice(policy: str) -> None:
    packing = pack(np.array([3, 5], np.int32), np.array([0, 0, 1]), 8, policy, "seed")
    assert packing.token_counts.sum() == 11


@pytest.mark.long
@pytest.mark.parametrize("policy", POLICIES)
def test_776_thousand_examples_are_planned_in_half_a_second(policy: str) -> None:
    lengths = np.random.default_rng(0).choice(LENGTHS, 776_000)
    started = time.process_time()
    packed(lengths, policy)
    assert time.process_time() - started < 0.5
