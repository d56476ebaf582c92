from __future__ import annotations

import numpy as np
import pytest

from megatron_dsmath.report.number_formats import achieved_shares, corners, smoothed, tokens_by_corpus, window_steps
from megatron_dsmath.report.record import Series, read_run
from tests.report.conftest import WriteRun, row


def series(values: list[float]) -> Series:
    return Series(np.arange(1, len(values) + 1), np.array(values))


def test_a_smoothed_value_is_the_mean_of_the_last_fortieth_of_the_run() -> None:
    values = [float(step * step) for step in range(1, 121)]  # a window of 3
    smooth = smoothed(series(values))
    assert smooth[0] == 1.0
    assert smooth[1] == (1 + 4) / 2
    assert smooth[119] == pytest.approx((118**2 + 119**2 + 120**2) / 3, rel=1e-12)  # sums of squares are exact in fp64


@pytest.mark.parametrize(("measurements", "steps"), [(0, 1), (1, 1), (79, 1), (80, 2), (2000, 50), (47_684, 50)])
def test_the_window_grows_with_the_run_up_to_fifty_steps(measurements: int, steps: int) -> None:
    assert window_steps(measurements) == steps


def test_corners_are_the_peak_and_the_first_step_of_each_drop() -> None:
    # The paper's shape in ten steps: warm-up of 2, then 31.6% after 8 and 10% after 9.
    rate = [0.5, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.316, 0.1]
    assert corners(series(rate)) == [(2, 1.0), (9, 0.316), (10, 0.1)]


def test_a_constant_rate_has_one_corner() -> None:
    assert corners(series([5e-5] * 4)) == [(1, 5e-5)]


def test_a_smooth_decay_has_no_corner_but_its_peak() -> None:
    cosine = [0.5 * (1 + np.cos(np.pi * step / 1000)) for step in range(800)]
    assert corners(series(cosine)) == [(1, 1.0)]


def test_achieved_shares_are_tokens_so_far_over_their_sum(write_run: WriteRun) -> None:
    run = read_run(write_run(rows=[row(1), row(2, tokens_by_corpus={"math": 900, "code": 300, "extra": 0})]))
    assert tokens_by_corpus(run) == {"math": 900, "code": 300}
    assert achieved_shares(run) == {"math": 0.75, "code": 0.25}


def test_shares_of_conversations_add_up_to_one_in_each_grouping(write_run: WriteRun) -> None:
    names = {"kind/cot": 3, "kind/tool": 1, "language/en": 4}
    rows = [row(1, loss_by_corpus=dict.fromkeys(names, 1.0), tokens_by_corpus=names)]
    shares = achieved_shares(read_run(write_run(rows=rows)))
    assert shares == {"kind/cot": 0.75, "kind/tool": 0.25, "language/en": 1.0}


def test_without_token_counts_no_share_is_claimed(write_run: WriteRun) -> None:
    run = read_run(write_run(rows=[row(1, tokens_by_corpus=None)]))
    assert achieved_shares(run) == {}
