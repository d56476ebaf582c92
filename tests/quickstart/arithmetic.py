"""An exact evaluator of LaTeX and Python arithmetic, independent of the code that writes the corpora."""

from __future__ import annotations

import ast
import math
import operator
import re
from fractions import Fraction

OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Mod: operator.mod,
}


def value(text: str, **variables: int | Fraction) -> Fraction:
    """The exact value of an expression; letters are the names of `variables`."""
    return _value(ast.parse(_as_python(text), mode="eval").body, variables)


def formulas(text: str) -> list[str]:
    """The formulas between dollar signs."""
    return re.findall(r"\$([^$]+)\$", text)


def numeric_chains(text: str) -> list[list[Fraction]]:
    """The values of the sides of each equation between dollar signs that holds numbers alone."""
    equations = (part for formula in formulas(text) for part in formula.split("<"))
    chains = [equation.split("=") for equation in equations if "=" in equation]
    return [[value(side) for side in sides] for sides in chains if not re.search("[a-z]", _as_python(" ".join(sides)))]


def _as_python(text: str) -> str:
    text = text.replace("\\times", "*").replace("\\cdot", "*").replace("\\div", "/")
    while re.search(r"\\frac", text):
        text = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"((\1)/(\2))", text)
    text = re.sub(r"\\binom\{(\d+)\}\{(\d+)\}", lambda match: str(math.comb(int(match[1]), int(match[2]))), text)
    text = re.sub(r"\^\{([^{}]*)\}", r"**(\1)", text).replace("^", "**")
    return re.sub(r"(?<=[\d)])\s*(?=[a-z(])", "*", text).strip()


def _value(node: ast.expr, variables: dict[str, int | Fraction]) -> Fraction:
    if isinstance(node, ast.Constant):
        return Fraction(node.value)
    if isinstance(node, ast.Name):
        return Fraction(variables[node.id])
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand, variables)
    assert isinstance(node, ast.BinOp), ast.dump(node)
    left, right = _value(node.left, variables), _value(node.right, variables)
    return left ** int(right) if isinstance(node.op, ast.Pow) else OPERATIONS[type(node.op)](left, right)
