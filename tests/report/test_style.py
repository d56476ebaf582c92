from __future__ import annotations

from itertools import pairwise

import pytest

from megatron_dsmath.report.style import LONGEST_NAME, printable_name, spread_heights


@pytest.mark.parametrize(
    ("heights", "placed"),
    [
        ([0.2, 0.8], [0.2, 0.8]),  # nothing to do
        ([0.5, 0.5], [0.5, 0.75]),
        ([0.9, 0.95], [0.75, 1.0]),  # no room above
        ([0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.25, 0.5, 0.75, 1.0]),
        ([], []),
    ],
)
def test_labels_are_a_quarter_apart(heights: list[float], placed: list[float]) -> None:
    assert spread_heights(heights, 0.25) == pytest.approx(placed, abs=1e-12)  # sums of quarters are exact


def test_more_labels_than_fit_keep_their_gap() -> None:
    placed = spread_heights([0.5] * 7, 0.25)
    assert [high - low for low, high in pairwise(placed)] == pytest.approx([0.25] * 6)


def test_names_are_shown_on_one_line_and_shortened() -> None:
    assert printable_name("a\nb\ud800") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}"
    assert printable_name("语料") == "语料"
    assert printable_name("x" * 100) == "x" * (LONGEST_NAME - 1) + "…"
