"""The letter that an output chooses, where a question offers some: stated, never guessed from any letter in it."""

from __future__ import annotations

import re
from collections.abc import Iterable

LIMIT_STATEMENT = 200
"""Characters of a statement that are looked at: the letter begins it."""

_DRESS = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s?\{|[{}$*]|\\[()\[\]]")
_NAMED = r"(?i:(?:the )?(?:option|choice)|选项)?\s*"
_END = r"(?=\s*(?:$|[\n.,;:，。；：、]|or\b|and\b|because\b|since\b|或|和|选项|项))"
_LIST = r"(?=(?:\s+[A-H])+\s*(?:$|[\n.,;，。；]))"  # A B D: letters alone, up to an end
_ONE = rf"(?:[(（]\s?[A-H]\s?[)）]|[A-H]{{1,4}}(?:[)）]|{_END})|[A-H]{_LIST}|[B-H](?=\s+[a-z]))"
_STATED = re.compile(rf"\s*[:：]?\s*{_NAMED}({_ONE}(?:(?:[\s,、和或与]|and|or)*{_ONE})*)")
_BY_THE_WAY = re.compile(
    r"\b(?:choice|option) [(（]?([A-H])(?![A-Za-z'’])"
    r"|(?:\b(?:so|thus|hence|therefore)|所以|因此|故)[,，]?\s?[(（]?([A-H])[)）]?[.。]?$"
)
_ALONE = re.compile(r"[(（]?([A-H])(?:[)）.:、].*|。)?")
_LETTER = re.compile("[A-H]")


def chosen(statements: Iterable[str], output: str) -> str | None:
    """The letters of the last statement that begins with some, in order and once each; None where there is none.

    `statements`: what boxes hold and what stands behind "the answer is", in the order of the output. Without one, a
    choice that is named ("which is choice (D)", "so D" at the end) counts, then a letter that is the last line.
    """
    found = [letters for letters in map(_stated, statements) if letters]
    if found:
        return found[-1]
    named = _BY_THE_WAY.findall(output)
    if named:
        return "".join(named[-1])
    alone = _ALONE.fullmatch(_DRESS.sub("", output.strip().rpartition("\n")[2][:LIMIT_STATEMENT]).strip())
    return alone[1] if alone else None


def _stated(text: str) -> str:
    match = _STATED.match(_DRESS.sub("", text[:LIMIT_STATEMENT]))
    return "".join(sorted(set(_LETTER.findall(match[1])))) if match else ""
