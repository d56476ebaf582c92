"""How the paper's harness rewrites an answer before it compares, step by step in its order, quirks included."""

from __future__ import annotations

import re

from megatron_dsmath.evaluation.grading.notation import closing_braces

_LIMIT_CHARACTERS = 4000
_LIMIT_BOXES = 50  # ours; the harness compares as many of the last ones as the reference has parts
_BRACE = re.compile("[{}]")

_BEFORE_UNITS: tuple[tuple[str, str], ...] = (
    (r"\n", ""),
    (r"\.+$", ""),
    (r"\\!", ""),
    (r"^\\text\{(.*)\}$", r"\1"),
    (r"[tdc]frac", "frac"),
    (r"\\left|\\right", ""),
)
_AFTER_UNITS: tuple[tuple[str, str], ...] = (
    (r"\^\{\\circ\}|\^\\circ", ""),
    (r"\{[cm]?m\}(?:\^[23])?", ""),
    (r"p\.m\.$", ""),
    (r"(\d) ?t$", r"\1"),
    (r"\\?\$", ""),
    (r"x\\in", ""),
    (r"\\%", "%"),
    (r" \.", " 0."),
    (r"\{\.", "{0."),
    (r"\\cdot", ""),
    (r"infinity|(?<!\\)inf(?!ty)", r"\\infty"),
    (r"\\mathbf|\\mathrm", ""),
    (r"\\mbox\{[^}]*\}", ""),
)
_AT_LAST: tuple[tuple[str, str], ...] = (
    (r"(?<!\d)(\d{1,400})\.0+(\D|$)", r"\1\2"),
    (r"^\.", "0."),
    (r"\\sqrt(-?[0-9.a-zA-Z]+)", r"\\sqrt{\1}"),
    (r"\\sqrt +(\w+)$", r"\\sqrt{\1}"),
    (r"\\tan(-?[0-9.a-zA-Z]+)", r"\\tan{\1}"),
    (r"\\tan +(\w+)$", r"\\tan{\1}"),
    (r" ", ""),
    (r"\\frac([^{])([^{])", r"\\frac{\1}{\2}"),
    (r"\\frac([^{])(?=\{)", r"\\frac{\1}"),
    (r"^(-?\d+)/(-?\d+)$", r"\\frac{\1}{\2}"),
    (r"[\\,.]+$", ""),
)


def boxes(text: str) -> list[str]:
    """What each `boxed{` holds, a box within a box as well; one that is not closed is left out."""
    closings = closing_braces(text, _BRACE)
    places = ((match.end(), closings.get(match.end() - 1)) for match in re.finditer(r"boxed\{", text))
    return [text[start : end + (text[end + 1 : end + 2] == "%")] for start, end in places if end is not None][
        -_LIMIT_BOXES:
    ]


def stripped(answer: str) -> str:
    """The answer in the harness's own notation. Longer than any answer, it comes back empty."""
    if len(answer) > _LIMIT_CHARACTERS:
        return ""
    text = _rewritten(answer.strip(), _BEFORE_UNITS)
    without_unit = re.sub(r"\\text\{[^}]*\}$", "", text).strip()
    text = _rewritten(without_unit or text, _AFTER_UNITS).strip()
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    return _rewritten(text, _AT_LAST)


def _rewritten(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text).strip()
    return text
