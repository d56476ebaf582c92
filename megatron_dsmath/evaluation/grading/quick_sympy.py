"""sympy's two slow questions, answered alike in less time. For the sandbox alone, as all of sympy.

How a formula is written in LaTeX, and whether a difference is zero, are most of what a verdict costs.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import sympy
from antlr4.atn.PredictionMode import PredictionMode  # type: ignore[import-untyped]
from sympy.parsing.latex import _parse_latex_antlr as antlr

# sympy asks for antlr 4.11 by name; 4.13, which math-verify brings, reads the same tables (ATN version 4).
antlr.version = lambda name: "4.11"

_FULL_PARSER = antlr.LaTeXParser
_POINT = tuple(sympy.Rational(*ratio) for ratio in ((37, 91), (113, 79), (61, 47), (29, 83), (89, 53)))
_PLAINLY = 1e-6
_WITHOUT_END = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative)  # to evaluate at a point


class _QuickParser(antlr.LaTeXParser):  # type: ignore[misc]
    """The parser, but that it looks no further back than it must: it reads the same, or finds a mistake in the text."""

    def __init__(self, tokens: Any) -> None:
        super().__init__(tokens)
        self._interp.predictionMode = PredictionMode.SLL


@lru_cache(maxsize=256)
def parse_latex(text: str) -> Any:
    """`sympy.parsing.latex.parse_latex`, and what it raises."""
    try:
        antlr.LaTeXParser = _QuickParser
        return antlr.parse_latex(text)
    except antlr.LaTeXParsingError:
        antlr.LaTeXParser = _FULL_PARSER
        return antlr.parse_latex(text)


def simplified(difference: Any) -> Any:
    """`sympy.simplify` for who only asks whether that is 0: a difference that is none at some point comes back as 1."""
    return sympy.S.One if _is_plainly_not_zero(difference) else sympy.simplify(difference)


def _is_plainly_not_zero(difference: Any) -> bool:
    """Whether it has another value where all its symbols are positive, so that no identity can make it 0."""
    if not isinstance(difference, sympy.Expr) or difference.has(*_WITHOUT_END):
        return False
    symbols = sorted(difference.free_symbols, key=str)
    if len(symbols) > len(_POINT):
        return False
    point = dict(zip(symbols, _POINT, strict=False))
    try:
        return bool(abs(difference.evalf(subs=point, strict=True)) > _PLAINLY)
    except Exception:  # no number, or all its digits cancelled: simplify may know
        return False
