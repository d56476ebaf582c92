from __future__ import annotations

from collections import Counter
from hashlib import blake2b

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_dsmath.data.mixture.permutation import permute, random_words

WORD = 2**64


@given(size=st.integers(1, 3000), seed=st.integers(0, WORD))
def test_every_position_has_its_own_image(size: int, seed: int) -> None:
    assert sorted(permute(np.arange(size), size, random_words(seed))) == list(range(size))


@given(size=st.integers(1, 2**40), place=st.floats(0, 1, exclude_max=True), seed=st.integers(0, 2**32))
def test_equals_the_same_network_in_plain_integers(size: int, place: float, seed: int) -> None:
    position = int(place * size)
    ours = permute(np.array([position]), size, random_words(seed, "corpus"))
    assert ours.tolist() == [their_permutation(position, size, f"{seed}/corpus")]


def test_a_position_is_computed_alone() -> None:
    key, size, positions = random_words(7), 52_000_000, np.arange(51_000_000, 51_001_000)
    one_by_one = [permute(positions[[row]], size, key)[0] for row in (0, 500, 999)]
    assert permute(positions, size, key)[[0, 500, 999]].tolist() == one_by_one


def test_all_orders_of_four_are_equally_likely() -> None:
    keys = 24 * 200
    orders = Counter(tuple(permute(np.arange(4), 4, random_words(seed))) for seed in range(keys))
    assert len(orders) == 24
    # 23 degrees of freedom: a fair shuffle stays below 56 in 9,999 of 10,000 sets of keys.
    assert sum((count - 200) ** 2 / 200 for count in orders.values()) < 56


def test_neighbours_are_separated() -> None:
    places = permute(np.arange(10_007), 10_007, random_words("neighbours"))
    # Two are expected by chance (Poisson); more than 12 in one of 10 million shuffles.
    assert (np.abs(np.diff(places)) == 1).sum() <= 12


def test_two_labels_give_unrelated_orders() -> None:
    first, second = (permute(np.arange(10_007), 10_007, random_words(1, "math", epoch)) for epoch in (0, 1))
    # One agreement is expected by chance (Poisson); more than 10 in one of 100 million pairs.
    assert (first == second).sum() <= 10


def their_permutation(position: int, size: int, label: str) -> int:
    """The cipher of the paper, written for one number: a grid at least as large as `size`, walked until inside."""
    digest = blake2b(label.encode(), digest_size=64).digest()
    words = [int.from_bytes(digest[8 * turn : 8 * turn + 8], "little") for turn in range(8)]
    rows = next(side for side in range(int((size - 1) ** 0.5) - 1, size + 1) if side * side >= size and side > 0)
    columns = (size + rows - 1) // rows
    while True:
        row, column = position // columns, position % columns
        for turn, word in enumerate(words):
            if turn % 2 == 0:
                row = (row + splitmix64_finalizer(column ^ word) // 2) % rows
            else:
                column = (column + splitmix64_finalizer(row ^ word) // 2) % columns
        position = row * columns + column
        if position < size:
            return position


def splitmix64_finalizer(word: int) -> int:
    """The output function of SplitMix64 (Steele, Lea and Flood, 2014; constants of Stafford's variant 13)."""
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % WORD
    word = (word ^ word >> 27) * 0x94D049BB133111EB % WORD
    return word ^ word >> 31
