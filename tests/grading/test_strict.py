from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as some

from megatron_dsmath.grading.grade import Attempt, Grader
from megatron_dsmath.grading.strict import is_correct

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "grading.tsv"


def unproved(reference: str, answer: str) -> bool:
    return False


def test_every_golden_pair_has_its_verdict(grader: Grader) -> None:
    lines = [line for line in GOLDEN.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pairs = [line.split("\t") for line in lines]
    assert len(pairs) >= 300
    verdicts = grader.grade(Attempt(rf"so \boxed{{{answer}}}.", reference) for _, reference, answer in pairs)
    mistakes = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.correct != (pair[0] == "right")]
    assert mistakes == []


@given(some.fractions(max_denominator=999), some.fractions(max_denominator=999))
def test_fractions_are_right_exactly_when_they_are_equal(one: Fraction, other: Fraction) -> None:
    reference = rf"\frac{{{one.numerator}}}{{{one.denominator}}}"
    assert is_correct(reference, f"{other.numerator}/{other.denominator}", unproved) == (one == other)
    assert is_correct(reference, f"{3 * one.numerator}/{3 * one.denominator}", unproved)


@given(some.integers(min_value=1, max_value=10**12), some.sampled_from([10, 100, 1000]))
def test_a_factor_is_a_mistake(number: int, factor: int) -> None:
    assert is_correct(str(number), f"{number:,}", unproved)
    assert not is_correct(str(number), str(number * factor), unproved)
    assert not is_correct(str(number * factor), str(number), unproved)


@given(some.text(alphabet=some.sampled_from("0123456789.,/\\%$(){}[]^_=<>+-*x; 一分之三千frac\u200b"), max_size=60))
def test_any_text_gets_a_verdict_and_is_right_for_itself_or_nothing(text: str) -> None:
    is_correct("7", text, unproved)
    is_correct(text, "7", unproved)
