"""Find the final answer in a model's output."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from megatron_dsmath.grading.notation import closing_braces

CHOICE_TASKS = frozenset(("sat", "mmlu-stem", "gaokao-mathqa"))
NUMBER_TASKS = frozenset(("gsm8k", "mgsm-zh", "cmath"))
_LIMIT_PHRASE = 2000  # the answer is within this many characters after "the answer is"
_LIMIT_STATEMENT = 200  # characters of a statement that are read: it starts with the letter
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
_NO_FORMULA_AFTER = re.compile(r"\s*(?:$|[.。,，;；\n*]|\\?[A-Za-z\u4e00-\u9fff])(?![^\n]*\$)")
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
    """The final answer as the model wrote it; None if there is none.

    In order of preference: the last box, the text after the last "the answer is", 答案是 or ####, the last program's
    output, the last number. For multiple choice: the letters in the last statement of a choice. Where a base model
    continues with an invented question, the output ends.
    """
    head = output.lstrip()
    invented = _NEXT_QUESTION.search(head)
    head = head[: invented.start()] if invented else head
    if task in CHOICE_TASKS:
        return _last_choice(_statements(head), head)
    numbers: list[str] = _NUMBER.findall(head[-20 * _LIMIT_PHRASE :])
    return _boxed(head) or _marked(head, task) or _printed(head) or (numbers[-1] if numbers else None)


def _boxed(text: str) -> str | None:
    """The content of the last box. Boxes separated only by commas, `and` or 和 are one answer."""
    last: list[str] = []
    end = None
    for start, content, finish in _boxes(text):
        if end is not None and _BETWEEN_BOXES.fullmatch(text[end:start][:80]) and start - end < 80:
            last.append(content)
        else:
            last = [content]
        end = finish
    return ", ".join(dict.fromkeys(last)) or None


def _boxes(text: str) -> Iterator[tuple[int, str, int]]:
    """Start, content and end of each box, in one pass. A box within a box is part of the outer one."""
    end, closings = 0, closing_braces(text, _BRACES)
    for box in _BOX.finditer(text):
        if box.start() < end:
            continue
        start = box.end()
        start += len(text[start : start + 9]) - len(text[start : start + 9].lstrip(" $"))
        if text[start : start + 1] != "{":
            bare = _BARE.match(text, start) if box[0].startswith("\\") else None
            if bare:
                end = bare.end()
                yield box.start(), bare[1].rstrip(".,"), end
            continue
        closing = closings.get(start)
        if closing is None:
            continue
        end = closing + 1
        content = text[start + 1 : closing].strip()
        if content and len(content) <= 2 * _LIMIT_PHRASE:
            yield box.start(), content, end


def _marked(text: str, task: str | None) -> str | None:
    """The text after the last "the answer is", up to the end of its sentence."""
    markers = list(_MARKER.finditer(text[-50 * _LIMIT_PHRASE :]))
    for marker in reversed(markers):
        after = text[-50 * _LIMIT_PHRASE :][marker.end() : marker.end() + _LIMIT_PHRASE].lstrip(" :：=*\n")
        phrase = _first_sentence(after)
        if phrase:
            return _number_in(phrase) if task in NUMBER_TASKS else phrase
    return None


def _first_sentence(text: str) -> str:
    """The first sentence, not cut inside a formula. If it starts with its only formula: that and the unit after it."""
    for opening, closing in _MATHEMATICS:
        end = text.find(closing, len(opening), 500) + len(closing) if text.startswith(opening) else 0
        formula, rest = text[:end], text[end:]
        if _FORMULA.fullmatch(formula) and _NO_FORMULA_AFTER.match(rest):
            return (formula + _unit_word(rest)).strip()
    end_of_sentence = _SENTENCE_END.search(text)
    return text[: end_of_sentence.start() if end_of_sentence else len(text)].strip(" *")


def _unit_word(text: str) -> str:
    """One or two words directly after a formula that may be its unit."""
    found = re.match(r"[ ]?(?:[a-zA-Z]+(?: [a-zA-Z]+)?|[\u4e00-\u9fff]{1,4})(?=[.。,，\n]|$)", text)
    return found[0] if found else ""


def _number_in(phrase: str) -> str:
    """The number in a phrase: what follows the last =, or the first number in that."""
    last = phrase.rpartition("=")[2]
    numbers = list(_NUMBER.finditer(last))
    return last.strip() if len(numbers) <= 1 or re.search(r"[/\\又分]", last) else numbers[0][0]


def _printed(text: str) -> str | None:
    """The last line that the last program printed."""
    if _OUTPUT not in text:
        return None
    lines = text.rpartition(_OUTPUT)[2].partition("```")[0].strip().splitlines()
    return lines[-1].strip() if lines else None


_MARKUP = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s?\{|[{}$*]|\\[()\[\]]")
_NAMED = r"(?i:(?:the )?(?:option|choice)|选项)?\s*"
_END = r"(?=\s*(?:$|[\n.,;:，。；：、]|or\b|and\b|because\b|since\b|或|和|选项|项))"
_LIST = r"(?=(?:\s+[A-H])+\s*(?:$|[\n.,;，。；]))"  # letters alone, such as A B D, up to an end
_ONE = rf"(?:[(（]\s?[A-H]\s?[)）]|[A-H]{{1,4}}(?:[)）]|{_END})|[A-H]{_LIST}|[B-H](?=\s+[a-z]))"
_STATED = re.compile(rf"\s*[:：]?\s*{_NAMED}({_ONE}(?:(?:[\s,、和或与]|and|or)*{_ONE})*)")
_NAMED_CHOICE = re.compile(
    r"\b(?:choice|option) [(（]?([A-H])(?![A-Za-z'’])"
    r"|(?:\b(?:so|thus|hence|therefore)|所以|因此|故)[,，]?\s?[(（]?([A-H])[)）]?[.。]?$"
)
_ONLY_LETTER = re.compile(r"[(（]?([A-H])(?:[)）.:、].*|。)?")
_LETTER = re.compile("[A-H]")


def _last_choice(statements: Iterable[str], output: str) -> str | None:
    """The letters of the last statement that starts with letters, sorted, once each; None if there are none.

    Without such a statement: the last choice that is named ("which is choice (D)", "so D" at the end), then a letter
    alone on the last line.
    """
    found = [letters for letters in map(_stated_letters, statements) if letters]
    if found:
        return found[-1]
    named = _NAMED_CHOICE.findall(output)
    if named:
        return "".join(named[-1])
    alone = _ONLY_LETTER.fullmatch(_MARKUP.sub("", output.strip().rpartition("\n")[2][:_LIMIT_STATEMENT]).strip())
    return alone[1] if alone else None


def _stated_letters(text: str) -> str:
    match = _STATED.match(_MARKUP.sub("", text[:_LIMIT_STATEMENT]))
    return "".join(sorted(set(_LETTER.findall(match[1])))) if match else ""


def _statements(text: str) -> list[str]:
    """The contents of boxes and the texts after markers such as "the answer is", in the order of the text."""
    boxed = ((start, content) for start, content, _ in _boxes(text))
    marked = ((found.end(), text[found.end() : found.end() + _LIMIT_STATEMENT]) for found in _MARKER.finditer(text))
    return [statement for _, statement in sorted([*boxed, *marked])]
