"""The reference answers of the paper's test sets, and forms in which models write an answer."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from megatron_dsmath.grading.grade import reference_of

# file: task, field of the answer, number of rows in the paper's harness
SETS = {
    "gsm8k_test.jsonl": ("gsm8k", "answer", 1319),
    "gsm8k_test_openai.jsonl": ("gsm8k", "answer", 1319),
    "math_test.jsonl": ("math", "solution", 5000),
    "mgsm_zh.jsonl": ("mgsm-zh", "answer", 250),
    "cmath_test.jsonl": ("cmath", "golden", 1098),
    "ocw_test.jsonl": ("ocw", "answer", 272),
    "gaokao_mathcloze.jsonl": ("gaokao-cloze", "answer", 118),
    "gaokao_mathqa.jsonl": ("gaokao-mathqa", "label", 351),
    "mmlu_stem_test.jsonl": ("mmlu-stem", "answer", 3018),
    "sat_test.jsonl": ("sat", "Answer", 32),
}
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{?(\d+)\}?\{?(\d+)\}?$")


def references(folder: Path, name: str) -> list[str]:
    """The final answers of a set, in order."""
    _, field, _ = SETS[name]
    lines = (folder / "eval" / name).read_text(encoding="utf-8").splitlines()
    return [reference_of(json.loads(line)[field]) for line in lines]


def outputs(reference: str) -> Iterator[str]:
    """Outputs that end with this answer."""
    yield rf"Adding these gives 7 and 12. Therefore, the answer is $\boxed{{{reference}}}$."
    yield rf"所以最后得到\boxed{{{reference}}}。"
    plain = reference if "$" in reference else f"${reference}$"
    yield f"We have 3 of them. The answer is {plain}."
    yield f"一共有3个。所以答案是{plain}。"
    yield f"Then 7 remain.\nFinal Answer: The final answer is {plain}. I hope it is correct."


def rewritten(reference: str) -> Iterator[str]:
    """The same answer in other notations."""
    for short in ("\\frac", "\\tfrac", "\\dfrac"):
        yield re.sub(r"\\[dt]?frac(?![a-z])", lambda match, short=short: short, reference)  # type: ignore[misc]
    yield re.sub(r"(?<![a-zA-Z]) (?![a-zA-Z])", "", reference)
    yield re.sub(r"(?<=[^\\\d\s])(?=[-+=,)])|(?<=[+=,(])", " ", reference) if "{," not in reference else reference
    yield reference.replace("(", r"\left(").replace(")", r"\right)") if "\\left" not in reference else reference
    yield reference.replace("\\left", "").replace("\\right", "")
    yield reference.replace("^\\circ", "^{\\circ}")
    yield reference.replace("^\\circ", "°")
    yield reference.replace("\\!", "").replace("{,}", ",")
    yield reference.replace("\\%", "%").replace("\\$", "")
    yield re.sub(r"(?<=\d)\s*\\(?:text|mbox)\s?\{[^{}]*\}(?:\^[23])?\s*$", "", reference)
    fraction = _FRACTION.match(reference)
    if fraction:
        yield f"{fraction[1]}{fraction[2]}/{fraction[3]}"
        yield f"{fraction[1]}\\frac{{ {fraction[2]} }}{{ {fraction[3]} }}"
        value = Fraction(int(fraction[2]), int(fraction[3]))
        yield f"{fraction[1]}{decimal(value)}"
    if re.fullmatch(r"-?\d+", reference):
        yield f"{int(reference):,}"
        yield f"{reference}.0"
        yield f"{reference} dollars"
        yield f"{reference}个"
        yield rf"x = {reference}"
        yield rf"{reference}\text{{ apples}}"


def decimal(value: Fraction) -> str:
    """As a calculator shows it, with up to 12 digits."""
    return f"{float(value):.12f}".rstrip("0") if value.denominator != 1 else f"{value}"
