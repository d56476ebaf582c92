"""The structure of an answer: a list, tuple, interval, set, union, matrix, equation, words or formula.

Parts remain text, so that they are parsed only if a comparison needs them.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from megatron_dsmath.grading.notation import ROW_END, compact, split_outside_brackets, strip_wrappers


class Listing(NamedTuple):
    """Several answers: ordered if semicolons separate them, as the blanks of a cloze question."""

    parts: list[str]
    is_ordered: bool


class Bracketed(NamedTuple):
    """A tuple, point, interval or set, with its brackets as they were written."""

    opening: str
    parts: list[str]
    closing: str


class Union(NamedTuple):
    """A union of intervals or sets."""

    parts: list[str]


class Matrix(NamedTuple):
    """A matrix, or a determinant if vertical bars enclose it."""

    is_determinant: bool
    entries: list[str]  # row by row; each row ends with the entry "row"


class Equation(NamedTuple):
    """The first and last side of an equation, which may have more than two sides."""

    left: str
    right: str


class Words(NamedTuple):
    """Text that is not mathematics, in lower case without spaces and full stops."""

    text: str


class Formula(NamedTuple):
    """Any other answer."""

    text: str


Structure = Listing | Bracketed | Union | Matrix | Equation | Words | Formula

_MATRIX = re.compile(r"\\begin ?\{([bpvV]?matrix|array)\}(?: ?\{[lcr| ]*\})?(.*)\\end ?\{\1\}")
_AND = re.compile(
    r",? ?\\text ?\{ ?,? ?(?:and|or) ?\} ?|(?:, ?| )(?:and|or)(?= |\$) ?|(?<=[0-9a-zA-Z$)}\]]) ?(?:和|或者?|与|以及) ?"
)
_MEMBER_OF = re.compile(r"[A-Za-z] ?\\in ?(?=[\[({\\])")
_VARIABLE = r"\\?[A-Za-z]+"
_END = r"[^<>=]{1,200}?"
_BETWEEN = re.compile(rf"({_END}) ?(<|\\le) ?({_VARIABLE}) ?(<|\\le) ?({_END})")
_BETWEEN_FALLING = re.compile(rf"({_END}) ?(>|\\ge) ?({_VARIABLE}) ?(>|\\ge) ?({_END})")
_ONE_SIDED = re.compile(rf"({_VARIABLE}) ?(<|>|\\le|\\ge) ?({_END})")
_LONG_WORD = re.compile(
    r"(?<![\\A-Za-z])(?!(?:sqrt|frac|arcsin|arccos|arctan|sinh|cosh|tanh)\b)[A-Za-z]{4,}"
    r"|[\u4e00-\u9fff]|\d:\d\d ?[AaPp]\.?[Mm]"
)
_IN_TEXT = re.compile(r"\\text ?\{([^{}]*)\}")


def parse(text: str) -> Structure:
    """The structure of an answer that is not a plain number, in the form of `notation.normalize`."""
    text = _MEMBER_OF.sub("", text, count=1) if _MEMBER_OF.match(text) else text
    in_text = _IN_TEXT.fullmatch(text)
    text = strip_wrappers(in_text[1]) if in_text else text
    matrix = _MATRIX.fullmatch(text)
    if matrix:
        rows = [[*row.split("&"), "row"] for row in matrix[2].split(ROW_END) if row.strip()]
        return Matrix(matrix[1] in ("vmatrix", "Vmatrix"), [entry.strip() for row in rows for entry in row])
    text = _AND.sub(",", text)
    blanks = split_outside_brackets(text, ";")
    if len(blanks) > 1 and all(blanks):
        return Listing(blanks, is_ordered=True)
    joined = split_outside_brackets(text.replace(r"\cup", "\ue001"), "\ue001")
    if len(joined) > 1 and all(joined):
        return Union(joined)
    bracketed = _bracketed(text)
    if bracketed:
        return bracketed
    parts = [sign for part in split_outside_brackets(text, ",") for sign in _both_signs(part)]
    if len(parts) > 1 and all(parts):
        return Listing(parts, is_ordered=False)
    sides = split_outside_brackets(text, "=")
    if len(sides) > 1 and all(sides) and not re.search(r"[<>!]$", sides[0]):
        return Equation(sides[0], sides[-1])
    if in_text or _LONG_WORD.search(re.sub(r"\\text ?\{[^{}]*\}|\\[A-Za-z]+", "", text)):
        return as_words(text)
    return _interval(text) or Formula(text)


def as_words(text: str) -> Words:
    """Any text as words."""
    plain = re.sub(r"\\text ?\{([^{}]*)\}", r"\1", text)
    return Words(re.sub(r"[\s.\"'\ue000]", "", plain).lower())


def strip_parentheses(text: str) -> str:
    """The text without parentheses around all of it, unless they enclose a tuple."""
    while text.startswith("(") and text.endswith(")") and _closes_at_end(text):
        if len(split_outside_brackets(text[1:-1], ",")) > 1:
            break
        text = strip_wrappers(text[1:-1])
    return text


def is_name(text: str) -> bool:
    """Whether the left side of an equation is a name: x, k, f(x), A_1, \\angle ABC."""
    plain = compact(text)
    return re.fullmatch(r"\\?[A-Za-z]+'*(?:_\{?\w+\}?)?'*(?:\([a-z]\))?|\\angle[A-Z]{1,3}", plain) is not None


def _bracketed(text: str) -> Bracketed | None:
    opening = r"\{" if text.startswith(r"\{") else text[:1]
    closing = r"\}" if text.endswith(r"\}") else text[-1:]
    if opening not in ("(", "[", r"\{") or closing not in (")", "]", r"\}") or not _closes_at_end(text):
        return None
    parts = split_outside_brackets(text[len(opening) : -len(closing)], ",")
    return Bracketed(opening, parts, closing)


def _closes_at_end(text: str) -> bool:
    """Whether the last character closes the first bracket. A bracket may close one of another kind: (0, 1]."""
    depth = 0
    for index, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if depth == 0 and index > 0:
            return index == len(text) - 1
    return False


def _both_signs(part: str) -> list[str]:
    if part.count(r"\pm") != 1:
        return [part]
    before, after = part.split(r"\pm")
    return [f"{before.strip()}{'+' if before.strip(' =') else ''}{after.strip()}", f"{before.strip()}-{after.strip()}"]


def _interval(text: str) -> Bracketed | None:
    """The interval of an inequality in one variable; None for any other text."""
    between, falling, one_sided = (pattern.fullmatch(text) for pattern in (_BETWEEN, _BETWEEN_FALLING, _ONE_SIDED))
    if between:
        low, left, _, right, high = between.groups()
    elif falling:
        high, right, _, left, low = falling.groups()
    elif one_sided is None:
        return None
    elif one_sided[2] in ("<", r"\le"):
        low, left, right, high = r"-\infty", "<", one_sided[2], one_sided[3]
    else:
        low, left, right, high = one_sided[3], one_sided[2], "<", r"\infty"
    return Bracketed("(" if left in "<>" else "[", [low.strip(), high.strip()], ")" if right in "<>" else "]")
