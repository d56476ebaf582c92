"""Polynomials and fractions as LaTeX writes them."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction


def polynomial(coefficients: Sequence[int], variable: str = "x") -> str:
    """The polynomial with these coefficients, highest power first: (1, -5, 6) is `x^2 - 5x + 6`."""
    terms = []
    for power, coefficient in zip(range(len(coefficients) - 1, -1, -1), coefficients, strict=True):
        if coefficient:
            size = "" if abs(coefficient) == 1 and power else str(abs(coefficient))
            letter = "" if power == 0 else variable if power == 1 else f"{variable}^{power}"
            terms.append((" - " if coefficient < 0 else " + ", size + letter))
    text = "".join(sign + term for sign, term in terms) or " + 0"
    return "-" + text[3:] if text.startswith(" - ") else text[3:]


def value(coefficients: Sequence[int], at: int) -> int:
    """The value of that polynomial, by Horner's rule."""
    result = 0
    for coefficient in coefficients:
        result = result * at + coefficient
    return result


def fraction(number: Fraction) -> str:
    """A rational number in lowest terms as LaTeX."""
    sign = "-" if number < 0 else ""
    top, bottom = abs(number.numerator), number.denominator
    return f"{sign}{top}" if bottom == 1 else f"{sign}\\frac{{{top}}}{{{bottom}}}"
