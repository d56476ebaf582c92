from __future__ import annotations

from fractions import Fraction

import pytest

from megatron_dsmath.quickstart.exercises import format_fraction, format_polynomial


@pytest.mark.parametrize(
    ("coefficients", "text"),
    [((1, -5, 6), "x^2 - 5x + 6"), ((-1, 0, 1), "-x^2 + 1"), ((3, 1), "3x + 1"), ((0, 0), "0"), ((1, 0), "x")],
)
def test_polynomials_are_written_as_by_hand(coefficients: tuple[int, ...], text: str) -> None:
    assert format_polynomial(coefficients) == text


@pytest.mark.parametrize(
    ("number", "text"), [(Fraction(6, 4), "\\frac{3}{2}"), (Fraction(-1, 3), "-\\frac{1}{3}"), (Fraction(8, 4), "2")]
)
def test_fractions_are_written_in_lowest_terms(number: Fraction, text: str) -> None:
    assert format_fraction(number) == text
