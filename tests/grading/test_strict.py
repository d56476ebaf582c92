from __future__ import annotations

from fractions import Fraction
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as some

from megatron_dsmath.grading.grade import Attempt, Grader
from megatron_dsmath.grading.strict import is_correct

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "grading.tsv"


def never_equal(reference: str, answer: str) -> bool:
    return False


def test_golden_pairs_have_their_verdicts(grader: Grader) -> None:
    lines = [line for line in GOLDEN.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    pairs = [line.split("\t") for line in lines]
    assert len(pairs) >= 300
    verdicts = grader.grade(Attempt(rf"so \boxed{{{answer}}}.", reference) for _, reference, answer in pairs)
    mistakes = [pair for pair, verdict in zip(pairs, verdicts, strict=True) if verdict.correct != (pair[0] == "right")]
    assert mistakes == []


@given(some.fractions(max_denominator=999), some.fractions(max_denominator=999))
def test_a_fraction_is_correct_if_and_only_if_it_is_equal(one: Fraction, other: Fraction) -> None:
    reference = rf"\frac{{{one.numerator}}}{{{one.denominator}}}"
    assert is_correct(reference, f"{other.numerator}/{other.denominator}", never_equal) == (one == other)
    assert is_correct(reference, f"{3 * one.numerator}/{3 * one.denominator}", never_equal)


@given(some.integers(min_value=1, max_value=10**12), some.sampled_from([10, 100, 1000]))
def test_a_factor_of_10_100_or_1000_is_wrong(number: int, factor: int) -> None:
    assert is_correct(str(number), f"{number:,}", never_equal)
    assert not is_correct(str(number), str(number * factor), never_equal)
    assert not is_correct(str(number * factor), str(number), never_equal)


@given(some.text(alphabet=some.sampled_from("0123456789.,/\\%$(){}[]^_=<>+-*x; 一分之三千frac\u200b"), max_size=60))
def test_any_text_gets_a_verdict(text: str) -> None:
    is_correct("7", text, never_equal)
    is_correct(text, "7", never_equal)
