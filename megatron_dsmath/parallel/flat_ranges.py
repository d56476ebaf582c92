"""A range of a tensor's values, counted row by row, as boxes: what a shard of the distributed optimizer is."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import NamedTuple


class Box(NamedTuple):
    """A part of a tensor with straight sides."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """The boxes that together hold the values `start` to `stop` - 1 of a tensor of `shape`, in order.

    Never more than 2n - 1 for n dimensions: whole rows, and before and after them what is of a row that was cut.
    """
    if start >= stop:
        return
    if len(shape) == 1:
        yield Box((start,), (stop - start,))
        return
    row = prod(shape[1:])
    first, last = -(-start // row), stop // row  # the whole rows
    if first > last:  # begins and ends within one row
        yield from _in_row(shape, last, start, stop)
        return
    yield from _in_row(shape, first - 1, start, first * row)
    if first < last:
        yield Box((first, *(0 for _ in shape[1:])), (last - first, *shape[1:]))
    yield from _in_row(shape, last, last * row, stop)


def _in_row(shape: tuple[int, ...], index: int, start: int, stop: int) -> Iterator[Box]:
    first = index * prod(shape[1:])
    for box in boxes(shape[1:], start - first, stop - first):
        yield Box((index, *box.offsets), (1, *box.sizes))
