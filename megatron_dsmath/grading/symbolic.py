"""What only the sandbox runs: sympy and math-verify on a model's text. Imported by the waiting interpreter, so warm.

Nothing here is safe elsewhere: sympy's parser evaluates Python, and a tower of powers never ends.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import re
import signal
import sys
from functools import lru_cache
from math import isclose
from typing import Any

import sympy
from antlr4.atn.PredictionMode import PredictionMode  # type: ignore[import-untyped]
from math_verify import LatexExtractionConfig, grader, parse, verify
from sympy.parsing.latex import _parse_latex_antlr as antlr
from sympy.parsing.sympy_parser import parse_expr

from megatron_dsmath.grading import grade
from megatron_dsmath.grading.sandboxed_comparison import Comparison

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


_FORMULA = (LatexExtractionConfig(boxed_match_priority=-1, try_extract_without_anchor=True),)
_NO_FORMULA = re.compile(r"__|lambda|['\"`@;]|\.\s*[A-Za-z_]|:=")  # Python, where the paper's parser would run it

_EXAMPLES = (
    r"\frac{2\sqrt{3}+x^2}{\pi}", r"\frac{2x-7}{(x+1)(x-2)}", "(x-5)(x^2-4x+7)", r"3+2i", r"\sin 3x", r"90^\circ",
    r"e^{-2t}", r"\log_2 5", "5x-3y=1", r"x\le 3",
)  # fmt: skip

logging.disable(logging.CRITICAL)
grader.simplify = simplified  # math-verify's: it, too, only asks whether the difference is 0


def main() -> None:
    """Answer the questions on standard input, a line each: `true` or `false`. Whoever is late ends this process."""
    asked = json.loads(sys.stdin.read())
    for entry in asked["questions"]:
        # Of the processor, since other programs must not decide a verdict. No handler: C code is ended as well.
        signal.setitimer(signal.ITIMER_PROF, asked["timeout_seconds"])
        with contextlib.redirect_stdout(io.StringIO()):  # antlr prints that 4.13 is not 4.11
            verdict = grade.is_correct(Comparison(**entry), symbolic_by_math_verify, symbolic_by_sympy)
        print(str(bool(verdict)).lower(), flush=True)


def symbolic_by_math_verify(reference: str, answer: str) -> bool:
    """Whether math-verify takes one formula for the other."""
    wanted, given = _formula(reference), _formula(answer)
    return bool(wanted and given and verify(wanted[:1], given[:1], timeout_seconds=None))


def symbolic_by_sympy(reference: str, answer: str) -> bool:
    """As the paper's harness asks sympy: the difference simplifies to 0, or the values are within 0.001."""
    one, other = _expression(answer), _expression(reference)
    if one is None or other is None:  # what is no formula is not given to sympy again: N would evaluate it as Python
        return False
    with contextlib.suppress(Exception):  # anything may happen to such a difference; then the values decide
        if simplified(one - other) == 0:
            return True
    try:
        return isclose(sympy.N(one), sympy.N(other), abs_tol=1e-3)
    except Exception:
        return False


def _formula(text: str) -> list[Any]:
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):  # math-verify drops the sign of degrees
        text = re.sub(r"(\d{1,20}(?:\.\d{1,20})?) ?\^\\circ", r"(\\frac{\1\\pi}{180})", text)
    found: list[Any] = parse(f"${text}$", _FORMULA, fallback_mode="no_fallback", parsing_timeout=None)
    return found


def _expression(text: str) -> Any:
    for read in (parse_latex, _python_expression):
        try:
            return read(text)
        except Exception:  # noqa: S112  # the other parser may know it
            continue
    return None


def _python_expression(text: str) -> Any:
    if _NO_FORMULA.search(text):
        raise ValueError(text)
    return parse_expr(text)


def _fill_caches() -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        for formula in _EXAMPLES:
            for other in (f"{formula}+1", "10", r"\frac{2}{5}", r"\sqrt{3}"):
                symbolic_by_math_verify(formula, other)
                symbolic_by_sympy(formula, other)


_fill_caches()
