from __future__ import annotations

from typing import Any

import pytest

from megatron_dsmath.evaluation.results.scores import majority_is_right, pass_at, summary, wilson_interval


def row_of(correct: bool, extracted: str | None = "7", **values: Any) -> dict[str, Any]:
    return {
        "row": 0, "correct": correct, "extracted": extracted, "correct_as_the_paper": correct, "note": "",
        "end": "end of text", "tool_calls": 0, "programs": [], "new_tokens": 1, "level": None, "subject": None,
        "language": "en", **values,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [
        # Newcombe 1998 (Statistics in Medicine 17, 857), table I, method 3: the score interval without correction.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_intervals_are_those_of_newcombes_table(correct: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(correct, count) == pytest.approx((low, high), abs=5e-5)  # it has four decimals


def test_pass_at_k_is_the_share_of_draws_with_a_right_one() -> None:
    problem = [row_of(True), *[row_of(False)] * 3]
    assert pass_at([problem], 1) == 1 / 4
    assert pass_at([problem], 2) == 1 / 2  # 3 of the 6 pairs hold it
    assert pass_at([problem], 4) == 1
    assert pass_at([problem, [row_of(False)] * 4], 2) == 1 / 4


def test_the_majority_votes_without_those_who_gave_no_answer() -> None:
    seven, eight, none = row_of(True, "7"), row_of(False, "8"), row_of(False, None)
    assert majority_is_right([eight, seven, seven])
    assert not majority_is_right([eight, seven]), "of two as frequent, the first"
    assert majority_is_right([none, none, none, seven])
    assert not majority_is_right([none])
    assert majority_is_right([eight, row_of(True, "1, 2"), row_of(True, "1,2")]), "spaces are no difference"


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        (r"\frac{1}{2}", "0.5", True),
        ("1,200", "1200", True),
        (r"\dfrac{3}{4}", r"\frac{3}{4}", True),
        ("50", "0.5", False),
        ("(1, 2)", "(2, 1)", False),
        ("x + 1", "1 + x", False),  # only algebra says so
    ],
)
def test_answers_that_are_written_otherwise_vote_together(one: str, other: str, together: bool) -> None:
    eight = row_of(False, "8")
    assert majority_is_right([eight, row_of(True, one), row_of(True, other)]) == together


def test_figures_of_a_task() -> None:
    error = {"program": "1 / 0", "verdict": "error", "stdout": "", "error": "ZeroDivisionError"}
    rows = [
        row_of(True, row=0, subject="Algebra"),
        row_of(False, row=1, subject="Algebra", correct_as_the_paper=True),
        row_of(False, None, row=2, note="no answer", end="length", subject="Geometry"),
        row_of(False, row=3, programs=[error, {**error, "verdict": "timeout"}], tool_calls=2, subject="Geometry"),
    ]
    figures = summary(rows, samples=1)
    assert (figures["accuracy"], figures["accuracy_as_the_paper"]) == (0.25, 0.5)
    assert (figures["no_answer"], figures["cut_off"], figures["graders_disagree"]) == (1, 1, 1)
    assert (figures["programs"], figures["program_errors"], figures["program_timeouts"]) == (2, 1, 1)
    assert {name: part["accuracy"] for name, part in figures["by_subject"].items()} == {"Algebra": 0.5, "Geometry": 0}
    assert "pass_at" not in figures


def test_the_interval_of_sampled_answers_counts_problems_not_samples() -> None:
    rows = [row_of(sample < 2, row=number, sample=sample) for number in range(10) for sample in range(4)]
    figures = summary(rows, samples=4)
    assert (figures["problems"], figures["accuracy"]) == (10, 0.5)
    assert figures["interval_95"] == wilson_interval(5, 10)
