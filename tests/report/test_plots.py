from __future__ import annotations

import numpy as np

from megatron_dsmath.report.plots import rate_corners
from megatron_dsmath.report.record import Series


def series(values: list[float]) -> Series:
    return Series(np.arange(1, len(values) + 1), np.array(values))


def test_corners_are_the_peak_and_the_first_step_of_each_drop() -> None:
    # The paper's shape in ten steps: warm-up of 2, then 31.6% after 8 and 10% after 9.
    rate = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.316, 0.1]
    assert rate_corners(series(rate)) == [(2, 1.0), (9, 0.316), (10, 0.1)]


def test_a_constant_rate_has_one_corner() -> None:
    assert rate_corners(series([5e-5] * 4)) == [(1, 5e-5)]


def test_the_end_of_a_decay_to_zero_has_no_corner() -> None:
    rate = [1.0 - np.sqrt(step / 500) for step in range(500)]
    assert rate_corners(series(rate)) == [(1, 1.0)]


def test_a_smooth_decay_has_no_corner_but_its_peak() -> None:
    cosine = [0.5 * (1 + np.cos(np.pi * step / 1000)) for step in range(800)]
    assert rate_corners(series(cosine)) == [(1, 1.0)]
