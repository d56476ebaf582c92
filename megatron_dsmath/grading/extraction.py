"""The final answer in all that a model wrote."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from megatron_dsmath.grading.notation import closing_braces

CHOICE_TASKS = frozenset(("sat", "mmlu-stem", "gaokao-mathqa"))
NUMBER_TASKS = frozenset(("gsm8k", "mgsm-zh", "cmath"))
_LIMIT_PHRASE = 2000  # characters behind "the answer is" in which the answer must stand
LIMIT_STATEMENT = 200
"""Characters of a statement that are looked at: the letter begins it."""
_NEXT_QUESTION = re.compile(r"\n(?:Q: |Question: |Problem:|问题[:： ]|User: |<｜)")
_BOX = re.compile(r"\\?(?:boxed|fbox)(?![A-Za-z])")
_BARE = re.compile(r"\s{0,9}(-?\\?[\w.,/%]{1,99})")
_BETWEEN_BOXES = re.compile(r"[\s$,，、.;和或与及]*(?:\\text\s?\{)?\s?(?:and|or|\\quad)?\s?\}?[\s$,，、和或与及]*")
_MARKER = re.compile(
    r"####|\b(?:final |correct |right )?(?:answer|choice|option)s?(?: to [^.\n]{1,80}?)?"
    r" (?:is|are|should be|must be|will be)(?: therefore| thus)?:?"
    r"|\b(?:final )?answers?\s?(?:\*\*)?[:=]|^A:|(?:答案|结果)(?:就|应该?|最终)?(?:是|为|:|：)"
    r"|(?:故|应|正确)?选(?:择|项)?(?:是|为|:|：)?(?=\s?[(（]?[A-H])",
    re.IGNORECASE | re.MULTILINE,
)
_MATHEMATICS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"))
_FORMULA = re.compile(r"(?=[^\w]*\w)(?:(?!\. |\n\n)[\s\S])+")
_NO_FORMULA_BEHIND = re.compile(r"\s*(?:$|[.。,，;；\n*]|\\?[A-Za-z\u4e00-\u9fff])(?![^\n]*\$)")
_BRACES = re.compile(r"\\.|[{}]", re.DOTALL)
_OUTPUT = "```output"
_NUMBER = re.compile(
    r"(?<![A-Za-z0-9_.])"
    r"(?:[-−]?\\[dt]?frac\{-?\d+\}\{\d+\}"
    r"|[-−]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?(?:[eE][+-]?\d{1,3}|/\d+)?(?:\s?\\?[%％])?"
    r"|-?\.\d+)"
)
_SENTENCE_END = re.compile(
    r"\n|。|(?<![\d\s])\.(?=\s|$)|(?<=\d)\.(?=\s|$)|;(?=\s)|\. I hope"
    r"|, (?:because|since|so|which|where) |[，,]?(?:因为|因此|所以)"
)


def extract(output: str, task: str | None = None) -> str | None:
    """The final answer as the model wrote it; None where it gave none.

    The last box counts, then what stands behind the last "the answer is", 答案是 or ####, then the output of the last
    program, then the last number; for multiple choice, the letter that is stated last (`choices`). A question that a
    base model goes on to invent, and what follows it, is not its output.
    """
    head = output.lstrip()
    invented = _NEXT_QUESTION.search(head)
    head = head[: invented.start()] if invented else head
    if task in CHOICE_TASKS:
        return chosen(_statements(head), head)
    found = _boxed(head) or _marked(head, task) or _printed(head)
    if found is None:
        numbers = list(_NUMBER.finditer(head[-20 * _LIMIT_PHRASE :]))
        found = numbers[-1][0] if numbers else None
    return found


def _boxed(text: str) -> str | None:
    """What the last box holds; boxes that only commas, `and` or 和 part are one answer."""
    last: list[str] = []
    end = None
    for start, content, finish in _boxes(text):
        if end is not None and _BETWEEN_BOXES.fullmatch(text[end:start][:80]) and start - end < 80:
            last.append(content)
        else:
            last = [content]
        end = finish
    distinct = list(dict.fromkeys(last))
    return ", ".join(distinct) or None


def _boxes(text: str) -> Iterator[tuple[int, str, int]]:
    """Where each box begins, what it holds, where it ends; in one pass, boxes within boxes being part of the outer."""
    end, closings = 0, closing_braces(text, _BRACES)
    for box in _BOX.finditer(text):
        if box.start() < end:
            continue
        place = box.end()
        place += len(text[place : place + 9]) - len(text[place : place + 9].lstrip(" $"))
        if text[place : place + 1] != "{":
            bare = _BARE.match(text, place) if box[0].startswith("\\") else None
            if bare:
                end = bare.end()
                yield box.start(), bare[1].rstrip(".,"), end
            continue
        closing = closings.get(place)
        if closing is None:
            continue
        end = closing + 1
        content = text[place + 1 : closing].strip()
        if content and len(content) <= 2 * _LIMIT_PHRASE:
            yield box.start(), content, end


def _marked(text: str, task: str | None) -> str | None:
    """What stands behind the last "the answer is", up to the end of its sentence."""
    markers = list(_MARKER.finditer(text[-50 * _LIMIT_PHRASE :]))
    for marker in reversed(markers):
        behind = text[-50 * _LIMIT_PHRASE :][marker.end() : marker.end() + _LIMIT_PHRASE].lstrip(" :：=*\n")
        phrase = _up_to_the_end(behind)
        if phrase:
            return _number_in(phrase) if task in NUMBER_TASKS else phrase
    return None


def _up_to_the_end(text: str) -> str:
    """The sentence, not cut within mathematics: where it begins with its only formula, that and a unit behind it."""
    for opening, closing in _MATHEMATICS:
        end = text.find(closing, len(opening), 500) + len(closing) if text.startswith(opening) else 0
        formula, rest = text[:end], text[end:]
        if _FORMULA.fullmatch(formula) and _NO_FORMULA_BEHIND.match(rest):
            return (formula + _unit_word(rest)).strip()
    end_of_sentence = _SENTENCE_END.search(text)
    return text[: end_of_sentence.start() if end_of_sentence else len(text)].strip(" *")


def _unit_word(text: str) -> str:
    """The one or two words right behind a formula that may be its unit."""
    found = re.match(r"[ ]?(?:[a-zA-Z]+(?: [a-zA-Z]+)?|[\u4e00-\u9fff]{1,4})(?=[.。,，\n]|$)", text)
    return found[0] if found else ""


def _number_in(phrase: str) -> str:
    """The number a phrase gives: all of it where it is one, behind its last = else, or the first number in it."""
    last = phrase.rpartition("=")[2]
    numbers = list(_NUMBER.finditer(last))
    return last.strip() if len(numbers) <= 1 or re.search(r"[/\\又分]", last) else numbers[0][0]


def _printed(text: str) -> str | None:
    """The last line that the last program printed."""
    if _OUTPUT not in text:
        return None
    lines = text.rpartition(_OUTPUT)[2].partition("```")[0].strip().splitlines()
    return lines[-1].strip() if lines else None


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


def _statements(text: str) -> list[str]:
    """What boxes hold, and what stands behind each marker, in the order of the text."""
    boxed = ((start, content) for start, content, _ in _boxes(text))
    behind = ((found.end(), text[found.end() : found.end() + LIMIT_STATEMENT]) for found in _MARKER.finditer(text))
    return [statement for _, statement in sorted([*boxed, *behind])]
