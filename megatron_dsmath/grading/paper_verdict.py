"""The paper's verdict, re-implemented from DeepSeek-Math's evaluation harness (deepseek-ai/DeepSeek-Math, evaluation/).

It is as lenient as the original, so that accuracies are comparable: a factor of 100, a difference below 0.001 and (1,2)
for [1,2] are correct. `strict` is our verdict.
"""

from __future__ import annotations

import re
from math import isclose

from megatron_dsmath.grading.notation import closing_braces
from megatron_dsmath.grading.strict import TextComparison

_LIMIT_CHARACTERS = 4000  # the harness has no limit
_LIMIT_BOXES = 50  # the harness has no limit; it compares as many of the last boxes as the reference has parts
_TOLERANCE = 1e-3
_FOLLOWING = {
    "gsm8k": "Q: ", "math": "Problem:", "sat": "Problem:", "mmlu-stem": "Problem:", "ocw": "Problem:",
    "gaokao-cloze": "问题 ", "gaokao-mathqa": "问题 ", "cmath": "问题：",
}  # fmt: skip
_ALWAYS_FEW_SHOT = frozenset(("sat", "mmlu-stem", "ocw", "gaokao-cloze", "gaokao-mathqa"))
_BRACE = re.compile("[{}]")
_CHOICE = re.compile(r"the final answer is \(?([abcd])\)?")
_RATIO = re.compile(r"(-?)(?:\\frac\{(\d{1,9})\}\{(\d{1,9})\}|(\d{1,9}))")
_ROUND_OR_SQUARE = re.compile(r"[(\[].+[)\]]", re.DOTALL)


def extract(output: str, task: str | None, is_few_shot: bool = False) -> list[str]:
    """The answers that the harness extracts from an output: one, or for MATH the content of every box."""
    if is_few_shot or task in _ALWAYS_FEW_SHOT:
        output = output.partition(_FOLLOWING.get(task or "", "\x00"))[0]
        if task in ("sat", "mmlu-stem"):
            letter = _CHOICE.search(output.lower())
            return [letter[1].upper()] if letter else [""]
        if task == "ocw":
            _, found, following = output.partition("final answer is ")
            return [following.split("\n")[0].rpartition(". I hope it is correct.")[0] if found else ""]
        if task in ("gaokao-cloze", "gaokao-mathqa"):
            return [output.partition("答案是")[2].strip().split("\n")[0].strip().strip("$")]
        if task == "gsm8k":
            return [_last(r"-?\d+\.?\d*", output)]
        if task == "cmath" and "答案是" in output:
            return [_last(r"-?\d+\.?\d*", output.partition("答案是")[2].strip().split("\n")[0])]
    first_lines = (answer.strip().split("\n")[0] for answer in _answers(output))
    answers = [rewrite(line.lstrip(":").rstrip(".").rstrip("/")) for line in first_lines]
    if task == "math":
        return [part for answer in answers for part in _parts(answer)]
    return answers[-1:] or [""]


def _answers(output: str) -> list[str]:
    if "final answer is $" in output and "$. I hope" in output:
        return [output.partition("final answer is $")[2].partition("$. I hope")[0]]
    if "boxed" in output:
        return _box_contents(output)
    if "he answer is" in output:
        return [output.rpartition("he answer is")[2]]
    printed = output.rpartition("```output")[2].partition("```")[0].strip() if "```output" in output else ""
    if printed:
        return [printed]
    number = _last(r"-?\d*\.?\d+", output.replace(",", ""))
    return [number] if number else []


def _last(pattern: str, text: str) -> str:
    found = re.findall(pattern, text)
    return found[-1] if found else ""


def _box_contents(text: str) -> list[str]:
    """The content of each closed `boxed{`, also of boxes within boxes."""
    closings = closing_braces(text, _BRACE)
    spans = ((match.end(), closings.get(match.end() - 1)) for match in re.finditer(r"boxed\{", text))
    contents = [text[start : end + (text[end + 1 : end + 2] == "%")] for start, end in spans if end is not None]
    return contents[-_LIMIT_BOXES:]


def _parts(answer: str) -> list[str]:
    return [part.strip() for part in re.split(r"\\text\{\s*and\s*\}", answer)]


def is_correct(reference: str, answers: str, task: str | None, symbolic: TextComparison) -> bool:
    """Whether the answers from `extract`, joined by line breaks, match the reference."""
    given = answers.split("\n")
    if len(answers) > _LIMIT_CHARACTERS or len(reference) > _LIMIT_CHARACTERS:
        return False
    if task == "math":
        wanted = list(dict.fromkeys(_parts(rewrite(reference))))
        given = list(dict.fromkeys(given))[-len(wanted) :]
        return _all_matched(given, wanted, symbolic)
    if task == "gaokao-cloze":
        blanks = [rewrite(blank) for blank in reference.strip().split(";")]
        given = list(dict.fromkeys(part for answer in given for part in _cloze_parts(answer)))[-len(blanks) :]
        return len(given) == len(blanks) and all(_accepts(*pair, symbolic) for pair in zip(given, blanks, strict=True))
    if task == "gaokao-mathqa":
        letters = {letter: given[0].index(letter) for letter in "ABCD" if letter in given[0]}
        return bool(letters) and max(letters, key=lambda letter: letters[letter]) == reference
    if task in ("sat", "mmlu-stem"):
        return given[0].lower() == reference.lower()
    return _accepts(given[-1], reference.strip().replace(",", "") if task else rewrite(reference), symbolic)


def _cloze_parts(answer: str) -> list[str]:
    parts, depth, start = [], 0, 0
    for index, character in enumerate(answer):
        if character == ";" or (character == "," and depth == 0):
            parts.append(answer[start:index].strip())
            start, depth = index + 1, 0
        depth += (character in "([{") - (character in ")]}")
    return [*parts, answer[start:].strip()]


def _all_matched(given: list[str], wanted: list[str], symbolic: TextComparison) -> bool:
    """Whether each answer matches some reference and each reference some answer, in any order and number."""
    if len(given) * len(wanted) > 400:
        return False
    matches = [[_accepts(answer, reference, symbolic) for reference in wanted] for answer in given]
    return all(map(any, matches)) and all(any(column) for column in zip(*matches, strict=True)) and bool(matches)


def _accepts(answer: str, reference: str, symbolic: TextComparison) -> bool:
    if "\\cup" in answer and "\\cup" in reference:
        return _all_matched(answer.split("\\cup"), reference.split("\\cup"), symbolic)
    one, other = _float(answer), _float(reference)
    if one is not None and other is not None and abs(one - other) < _TOLERANCE:
        return True
    return (reference != "" and answer == reference) or _math_equal(answer, reference, symbolic)


def _float(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except (ValueError, OverflowError):
        return None


def _math_equal(answer: str, reference: str, symbolic: TextComparison) -> bool:
    if answer == reference:
        return True
    one, other = _float_or_percent(answer), _float_or_percent(reference)
    if one is not None and other is not None:
        return any(isclose(scaled, one, abs_tol=_TOLERANCE) for scaled in (other / 100, other, other * 100))
    answer, reference = answer.strip(), reference.strip()
    if not answer:
        return False
    are_bracketed = _ROUND_OR_SQUARE.match(answer) and _ROUND_OR_SQUARE.match(reference)
    if are_bracketed and _entries_equal(answer[1:-1].split(","), reference[1:-1].split(","), symbolic):
        return True
    rows, reference_rows = _matrix_rows(answer), _matrix_rows(reference)
    if rows and len(rows) == len(reference_rows):
        pairs = zip(rows, reference_rows, strict=True)
        if all(_entries_equal(one.split("&"), other.split("&"), symbolic) for one, other in pairs):
            return True
    if _equations_equal(answer, reference, symbolic):
        return True
    values = _ratio(answer), _ratio(reference)
    if values[0] is not None and values[1] is not None:  # the same result as sympy's, but faster
        return isclose(values[0], values[1], abs_tol=_TOLERANCE)
    return symbolic(reference, answer)


def _equations_equal(answer: str, reference: str, symbolic: TextComparison) -> bool:
    """Whether two equations are equal, or an equation such as x = 2 and a value."""
    left, _, right = answer.partition("=")
    reference_left, _, reference_right = reference.partition("=")
    counts = answer.count("="), reference.count("=")
    if counts == (1, 1):
        difference = f"{left.strip()} - ({right.strip()})"
        wanted = f"{reference_left.strip()} - ({reference_right.strip()})"
        return symbolic(wanted, difference) or symbolic(wanted, f"-({difference})")
    if counts == (1, 0) and len(left.strip()) <= 2:
        return _math_equal(right, reference, symbolic)
    return counts == (0, 1) and len(reference_left.strip()) <= 2 and _math_equal(answer, reference_right, symbolic)


def _float_or_percent(text: str) -> float | None:
    value = _float(text)
    if value is None and text.endswith("%"):
        value = _float(text[:-1].removesuffix("\\"))
        return None if value is None else value / 100
    return value


def _entries_equal(answers: list[str], references: list[str], symbolic: TextComparison) -> bool:
    pairs = zip(answers, references, strict=False)
    return len(answers) == len(references) and all(_math_equal(*pair, symbolic) for pair in pairs)


def _ratio(text: str) -> float | None:
    """The value of a fraction of small integers, or of a small integer."""
    found = _RATIO.fullmatch(text)
    if found is None:
        return None
    below = int(found[3] or 1)
    return None if below == 0 else int(found[1] + (found[2] or found[4])) / below


def _matrix_rows(text: str) -> list[str]:
    begin, end = text[:15], text[-13:]
    if begin not in (r"\begin{pmatrix}", r"\begin{bmatrix}") or end not in (r"\end{pmatrix}", r"\end{bmatrix}"):
        return []
    return [row.strip() for row in text[15:-13].split(r"\\") if row.strip()]


_RULES_BEFORE_UNITS: tuple[tuple[str, str], ...] = (
    (r"\n", ""),
    (r"\.+$", ""),
    (r"\\!", ""),
    (r"^\\text\{(.*)\}$", r"\1"),
    (r"[tdc]frac", "frac"),
    (r"\\left|\\right", ""),
)
_RULES_AFTER_UNITS: tuple[tuple[str, str], ...] = (
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
_FINAL_RULES: tuple[tuple[str, str], ...] = (
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


def rewrite(answer: str) -> str:
    """The answer as the harness rewrites it; empty if it is longer than _LIMIT_CHARACTERS."""
    if len(answer) > _LIMIT_CHARACTERS:
        return ""
    text = _apply_rules(answer.strip(), _RULES_BEFORE_UNITS)
    without_unit = re.sub(r"\\text\{[^}]*\}$", "", text).strip()
    text = _apply_rules(without_unit or text, _RULES_AFTER_UNITS).strip()
    if "j" in text and "i" not in text:
        text = text.replace("j", "i")
    return _apply_rules(text, _FINAL_RULES)


def _apply_rules(text: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text).strip()
    return text
