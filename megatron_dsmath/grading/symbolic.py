"""Compare formulas with sympy and math-verify. Runs only in the sandbox, whose fork server imports it once.

It is unsafe outside: sympy's parser evaluates Python, and evaluating a tower of powers does not end.
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

# sympy requires antlr 4.11; 4.13, which math-verify installs, reads the same tables (ATN version 4).
antlr.version = lambda name: "4.11"

_FULL_PARSER = antlr.LaTeXParser
_POINT = tuple(sympy.Rational(*ratio) for ratio in ((37, 91), (113, 79), (61, 47), (29, 83), (89, 53)))
_NOT_ZERO = 1e-6
_SLOW_TO_EVALUATE = (sympy.Integral, sympy.Sum, sympy.Product, sympy.Limit, sympy.Derivative)


class _QuickParser(antlr.LaTeXParser):  # type: ignore[misc]
    """sympy's parser with antlr's faster SLL prediction: the same result as the full parser, or a syntax error."""

    def __init__(self, tokens: Any) -> None:
        super().__init__(tokens)
        self._interp.predictionMode = PredictionMode.SLL


@lru_cache(maxsize=256)
def parse_latex(text: str) -> Any:
    """As `sympy.parsing.latex.parse_latex`: first with the quick parser, then with the full one."""
    try:
        antlr.LaTeXParser = _QuickParser
        return antlr.parse_latex(text)
    except antlr.LaTeXParsingError:
        antlr.LaTeXParser = _FULL_PARSER
        return antlr.parse_latex(text)


def simplify_difference(difference: Any) -> Any:
    """`sympy.simplify` for callers that only test for 0: 1 if the difference is not 0 at some point."""
    return sympy.S.One if _is_not_zero(difference) else sympy.simplify(difference)


def _is_not_zero(difference: Any) -> bool:
    """Whether an expression is not 0 at a point where all symbols are positive, so that it is not identically 0."""
    if not isinstance(difference, sympy.Expr) or difference.has(*_SLOW_TO_EVALUATE):
        return False
    symbols = sorted(difference.free_symbols, key=str)
    if len(symbols) > len(_POINT):
        return False
    point = dict(zip(symbols, _POINT, strict=False))
    try:
        return bool(abs(difference.evalf(subs=point, strict=True)) > _NOT_ZERO)
    except Exception:  # not a number, or all digits cancel: simplify may decide
        return False


_FORMULA = (LatexExtractionConfig(boxed_match_priority=-1, try_extract_without_anchor=True),)
_NO_FORMULA = re.compile(r"__|lambda|['\"`@;]|\.\s*[A-Za-z_]|:=")  # Python code, which the paper's parser would run

_EXAMPLES = (
    r"\frac{2\sqrt{3}+x^2}{\pi}", r"\frac{2x-7}{(x+1)(x-2)}", "(x-5)(x^2-4x+7)", r"3+2i", r"\sin 3x", r"90^\circ",
    r"e^{-2t}", r"\log_2 5", "5x-3y=1", r"x\le 3",
)  # fmt: skip

logging.disable(logging.CRITICAL)
grader.simplify = simplify_difference  # math-verify too only tests for 0


def main() -> None:
    """Print `true` or `false` for each comparison on standard input. One that takes too long ends the process."""
    request = json.loads(sys.stdin.read())
    for entry in request["comparisons"]:
        # CPU time, so that other programs do not change a verdict. Without a handler, the signal ends C code too.
        signal.setitimer(signal.ITIMER_PROF, request["timeout_seconds"])
        with contextlib.redirect_stdout(io.StringIO()):  # antlr prints a warning about its version
            verdict = grade.is_correct(Comparison(**entry), symbolic_by_math_verify, symbolic_by_sympy)
        print(str(bool(verdict)).lower(), flush=True)


def symbolic_by_math_verify(reference: str, answer: str) -> bool:
    """Whether math-verify finds two formulas equal."""
    wanted, given = _formula(reference), _formula(answer)
    return bool(wanted and given and verify(wanted[:1], given[:1], timeout_seconds=None))


def symbolic_by_sympy(reference: str, answer: str) -> bool:
    """As the paper's harness: whether the difference simplifies to 0 or the values differ by at most 0.001."""
    one, other = _expression(answer), _expression(reference)
    if one is None or other is None:  # sympy.N would evaluate the text as Python
        return False
    with contextlib.suppress(Exception):  # after any error the values decide
        if simplify_difference(one - other) == 0:
            return True
    try:
        return isclose(sympy.N(one), sympy.N(other), abs_tol=1e-3)
    except Exception:
        return False


def _formula(text: str) -> list[Any]:
    if re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", text):  # math-verify ignores the degree sign
        text = re.sub(r"(\d{1,20}(?:\.\d{1,20})?) ?\^\\circ", r"(\\frac{\1\\pi}{180})", text)
    found: list[Any] = parse(f"${text}$", _FORMULA, fallback_mode="no_fallback", parsing_timeout=None)
    return found


def _expression(text: str) -> Any:
    for read in (parse_latex, _python_expression):
        try:
            return read(text)
        except Exception:  # noqa: S112  # the other parser may read it
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
