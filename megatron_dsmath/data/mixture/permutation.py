"""A keyed permutation of 0 .. size - 1 that computes any position without a stored shuffled index.

A Feistel network over a grid of rows x columns >= size; results outside are permuted again ("cycle walking").
Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, the generalized-Feistel cipher.
"""

from __future__ import annotations

from hashlib import blake2b
from math import isqrt

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

ROUNDS = 8


def random_words(*label: object) -> Words:
    """Return one pseudo-random word per round, the same on every machine for the same label: uint64 [ROUNDS]."""
    digest = blake2b("/".join(map(str, label)).encode(), digest_size=8 * ROUNDS).digest()
    return np.frombuffer(digest, "<u8").astype(np.uint64)


def permute(positions: IntArray, size: int, key: Words) -> IntArray:
    """Permute `positions`, int64 [n] in 0 .. size - 1, with `key`, uint64 [rounds]: int64 [n]."""
    rows = isqrt(size - 1) + 1
    columns = -(-size // rows)
    image = _network(positions.astype(np.uint64), rows, columns, key)
    while (outside := image >= size).any():
        image[outside] = _network(image[outside], rows, columns, key)
    return image.astype(np.int64)


def mix(words: Words) -> Words:
    """Map each word to a pseudo-random word: a bijection of 64 bits (SplitMix64's finalizer)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Words = words ^ (words >> np.uint64(31))
    return mixed


def _network(cells: Words, rows: int, columns: int, key: Words) -> Words:
    """Permute the cells of the grid: alternately rotate each column and each row by its own amount."""
    row, column = divmod(cells, np.uint64(columns))
    for turn, word in enumerate(key):
        if turn % 2 == 0:
            row = (row + _amount(column ^ word)) % np.uint64(rows)
        else:
            column = (column + _amount(row ^ word)) % np.uint64(columns)
    moved: Words = row * np.uint64(columns) + column
    return moved


def _amount(words: Words) -> Words:
    """Return a pseudo-random number per word, of 63 bits so that adding a row does not overflow."""
    amounts: Words = mix(words) >> np.uint64(1)
    return amounts
