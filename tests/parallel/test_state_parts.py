"""Boxes of a range of values, against numpy."""

from __future__ import annotations

from math import prod

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_dsmath.parallel.state_parts import Box, boxes


@st.composite
def ranges(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    shape = tuple(draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    start, stop = sorted(draw(st.tuples(*[st.integers(0, prod(shape))] * 2)))
    return shape, start, stop


@given(ranges())
def test_the_boxes_hold_the_values_of_the_range_in_order(drawn: tuple[tuple[int, ...], int, int]) -> None:
    shape, start, stop = drawn
    tensor = np.arange(prod(shape)).reshape(shape)
    found = list(boxes(shape, start, stop))
    held = [tensor[tuple(slice(a, a + n) for a, n in zip(*box, strict=True))] for box in found]
    assert [part.shape for part in held] == [box.sizes for box in found]
    assert [int(value) for part in held for value in part.flatten()] == list(range(start, stop))
    assert len(found) <= 2 * len(shape) - 1


def test_a_range_has_partial_rows_before_and_after_complete_ones() -> None:
    expected = [Box((0, 3), (1, 2)), Box((1, 0), (2, 5)), Box((3, 0), (1, 4))]
    assert list(boxes((4, 5), 3, 19)) == expected
