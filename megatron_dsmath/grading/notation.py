"""Normalize the notation of answers: LaTeX variants, Unicode signs, Chinese numerals, spaces. All in linear time."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from math import prod

THOUSANDS = "\ue000"  # a separator of thousands, not of a list
DOLLAR = "＄"  # a currency, where $ would delimit a formula
ROW_END = "\ue002"  # end of a matrix row
LIMIT_CHARACTERS = 4000  # longer answers are rejected; the longest reference of the paper's sets has 130
_SIGNS = {
    "−": "-", "–": "-", "﹣": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "π": r"\pi ",
    "∞": r"\infty ", "°": r"^\circ ", "º": r"^\circ ", "℃": r"^\circ C", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ",
    "±": r"\pm ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "ω": r"\omega ",
    "∅": r"\emptyset ", "，": ",", "；": ";", "、": ",", "：": ":", "（": "(", "）": ")", "％": "%",
}  # fmt: skip
_SIGNS |= {character: f"^{{{unicodedata.digit(character)}}}" for character in "⁰¹²³⁴⁵⁶⁷⁸⁹"}
_SIGNS |= {character: f"_{{{unicodedata.digit(character)}}}" for character in "₀₁₂₃₄₅₆₇₈₉"}
_SIGNS |= {chr(0x2460 + index): rf"\textcircled{{{index + 1}}}" for index in range(20)}
_SIGNS |= {
    character: f" {unicodedata.normalize('NFKC', character).replace('⁄', '/')} " for character in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
}
_TRANSLATION = str.maketrans(_SIGNS)
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_RULES = (
    (r"\\\\(?:\[[^\[\]]*\])?|\\cr(?![A-Za-z])", ROW_END),
    (r"[,，]\s?\\!\s?(?=\d)|\{,\}(?=\d)|\\,(?=\d{3}(?!\d))", THOUSANDS),  # always a thousands separator
    (r"\\(?:left|right|bigl|bigr|Bigl|Bigr|big|Big|displaystyle|limits|nolimits)(?![A-Za-z])\.?", ""),
    (r"\\[!,;:> ]|~|\\(?:quad|qquad|hspace\{[^{}]*\}|newline)(?![A-Za-z])|\s", " "),
    (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
    (r"\\(?:mbox|textbf|textit|textrm|textnormal|hbox|bf|rm)(?=\s?\{)", r"\\text"),
    (r"\\(?:mathrm|mathbf|mathit|mathsf|operatorname|boldsymbol|mathbb)\s?\{([A-Za-z])\}", r"\1"),
    (r"\\(?:mathrm|mathbf|mathit|mathsf|operatorname|text)\s?(?=\{)", r"\\text"),
    (r"\\(?:leq|leqslant|le)(?![A-Za-z])", r"\\le "),
    (r"\\(?:geq|geqslant|ge)(?![A-Za-z])", r"\\ge "),
    (r"\\(?:lt|lt\{\})(?![A-Za-z])", "<"),
    (r"\\(?:gt|gt\{\})(?![A-Za-z])", ">"),
    (r"\\(?:neq|ne)(?![A-Za-z])", r"\\ne "),
    (r"\\lbrace(?![A-Za-z])", r"\\{"),
    (r"\\rbrace(?![A-Za-z])", r"\\}"),
    (r"\\lbrack(?![A-Za-z])", "["),
    (r"\\rbrack(?![A-Za-z])", "]"),
    (r"\\infin(?![A-Za-z])|(?<![A-Za-z\\])(?:infinity|inf|oo)(?![A-Za-z])", r"\\infty "),
    (r"\\union(?![A-Za-z])|\\bigcup(?![A-Za-z])", r"\\cup "),
    (r"\^\s?\{\s?\\circ\s?\}|\^\s?\\circ(?![A-Za-z])|\\degree(?![A-Za-z])|\\circ(?![A-Za-z])", r"^\\circ "),
    (r"\^\s?\{\s?(?:\\prime|')\s?\}|\^\s?\\prime(?![A-Za-z])", "'"),
    (r"√ ?\(([^()]*)\)|(?<![\\A-Za-z])sqrt ?\(([^()]*)\)|√ ?([0-9.]+|\w)", r"\\sqrt{\1\2\3}"),
    (r"(\\textcircled\{\d+\})[, ]+(?=\\textcircled)", r"\1"),
    (r"\*\*(?=[\d({a-zA-Z-])", "^"),
    (r"\\%", "%"),
    (r"\\\$", DOLLAR),
    (r"\\(?=\d)", " "),
    (r"\+\s?\\infty", r"\\infty"),
    (r"\\ast(?![A-Za-z])", "*"),
    (r"\\text\s?\{\s?\}", " "),
    (r" {2,}", " "),
)
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ("__", "__"))
_END = " \n\t.。,;:"


def normalize(text: str) -> str:
    """The text in one notation with single spaces; empty if it is longer than LIMIT_CHARACTERS."""
    if len(text) > LIMIT_CHARACTERS:
        return ""
    text = strip_wrappers(unicodedata.normalize("NFKC", _INVISIBLE.sub("", text).translate(_TRANSLATION)))
    for pattern, replacement in _RULES:
        text = re.sub(pattern, replacement, text)
    if text.count("$") > 1:  # several formulas in one sentence
        text = text.replace("$", " ")
    if not text.isascii():
        text = _with_digits(text)
    return strip_wrappers(text)


def strip_wrappers(text: str) -> str:
    """The text without delimiters of formulas and emphasis around it, and without punctuation at its end."""
    before = None
    while text != before:
        before = text
        text = text.strip(" \n\t").rstrip(_END)
        if text.endswith("\\"):
            text = text[:-1]
        for opening, closing in _WRAPPERS:
            inside = text.removeprefix(opening).removesuffix(closing)
            if inside and text == opening + inside + closing and opening not in inside and closing not in inside:
                text = inside
    return re.sub(r"^\*\*|\*\*$", "", text)


def compact(text: str) -> str:
    """The text for comparison: without spaces, braces around one character, and, except between digits, \\times."""
    text = re.sub(r"\\text ?\{([^{}]*)\}", r"\1", text.replace("\ue000", ""))
    text = re.sub(r"\{(\w|\\[A-Za-z]+)\}", r" \1", text)
    text = re.sub(r"\\cdot(?![A-Za-z])|\\times(?![A-Za-z])", "*", text)
    text = re.sub(r"(?<!\d) | (?!\d)", "", text)
    return re.sub(r"(?<!\d)\*|\*(?!\d)|[$＄]", "", text)


def closing_braces(text: str, brace: re.Pattern[str]) -> dict[int, int]:
    """The index of the closing brace for each opening brace, in one pass. `brace` matches braces."""
    closings, opened = {}, []
    for found in brace.finditer(text):
        if found[0] == "{":
            opened.append(found.start())
        elif found[0] == "}" and opened:
            closings[opened.pop()] = found.start()
    return closings


def split_outside_brackets(text: str, separators: str) -> list[str]:
    """The parts of the text between separators (single characters) that are not inside brackets."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character in separators and depth <= 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()]


_DIGITS = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_DIGITS |= {character: value for value, character in enumerate("壹贰叁肆伍陆柒捌玖", 1)}
_TENS = {"十": 10, "百": 100, "千": 1000, "拾": 10, "佰": 100, "仟": 1000}
_MYRIADS = {"万": 10**4, "亿": 10**8}
_SCALES = _TENS | _MYRIADS
_NUMERAL = "[零〇一二两三四五六七八九十百千万亿壹贰叁肆伍陆柒捌玖拾佰仟点]"
_AMOUNT = rf"(?:[0-9]+(?:\.[0-9]+)?[万亿]?|{_NUMERAL}+)"
_PERCENT = re.compile(rf"百分之({_AMOUNT})")
_MIXED = re.compile(rf"({_AMOUNT})又({_AMOUNT})分之({_AMOUNT})")
_FRACTION = re.compile(rf"({_AMOUNT})分之({_AMOUNT})")
_HALF = re.compile(r"一半|二分之一")
_MYRIAD = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s?([千百]?[万亿]|千(?![克米瓦卡升])|百(?!分))")
_WHOLE = re.compile(rf"(负?)({_NUMERAL}+)")
_OF_A_THOUSAND = ("克", "米", "瓦", "卡", "升")  # 千克 is a unit, not a number


def _with_digits(text: str) -> str:
    """The text with Chinese numerals as digits. A single numeral within words (一样) is kept."""
    text = _PERCENT.sub(lambda match: f"{_amount_in_digits(match[1])}%", text)
    text = _MIXED.sub(
        lambda match: f"{_amount_in_digits(match[1])} {_amount_in_digits(match[3])}/{_amount_in_digits(match[2])}", text
    )
    text = _HALF.sub("1/2", text)
    text = _FRACTION.sub(lambda match: f"{_amount_in_digits(match[2])}/{_amount_in_digits(match[1])}", text)
    text = _MYRIAD.sub(_convert_myriad, text)
    return _WHOLE.sub(lambda match: _convert_whole(match, text), text)


def _convert_myriad(match: re.Match[str]) -> str:
    return _format(Fraction(match[1]) * prod(_SCALES[character] for character in match[2]))


def _convert_whole(match: re.Match[str], text: str) -> str:
    numeral, unit = match[2], ""
    if numeral.endswith("千") and text.startswith(_OF_A_THOUSAND, match.end()):
        numeral, unit = numeral[:-1], "千"
    if len(numeral) == 1 and "一" <= text[match.start() - 1 : match.start()] <= "鿿":
        return match[0]
    value = _value(numeral)
    return match[0] if value is None else ("-" if match[1] else "") + _format(value) + unit


def _amount_in_digits(amount: str) -> str:
    if amount[0].isascii():
        return _MYRIAD.sub(_convert_myriad, amount)
    value = _value(amount)
    return amount if value is None else _format(value)


def _format(value: Fraction) -> str:
    return str(value.numerator) if value.denominator == 1 else f"{float(value):.12g}"


def _value(numeral: str) -> Fraction | None:
    """The value of a Chinese numeral; None if it has none, as 点 alone."""
    whole, point, decimals = numeral.partition("点")
    integer = _integer(whole)
    if integer is None or not point:
        return None if integer is None else Fraction(integer)
    if not decimals or any(character not in _DIGITS for character in decimals):
        return None
    return integer + Fraction(int("".join(str(_DIGITS[character]) for character in decimals)), 10 ** len(decimals))


def _integer(numeral: str) -> int | None:
    if not numeral or len(numeral) > 40:
        return None
    if len(numeral) > 1 and all(character in _DIGITS for character in numeral):  # 二〇二四
        return int("".join(str(_DIGITS[character]) for character in numeral))
    total = section = digit = 0
    for index, character in enumerate(numeral):
        if character in _DIGITS:
            digit = _DIGITS[character]
        elif character in _TENS:
            section += (digit or (1 if index == 0 or numeral[index - 1] in "零万亿" else 0)) * _TENS[character]
            digit = 0
        else:
            total = (total + section + digit) * _MYRIADS[character]
            section = digit = 0
    if digit and len(numeral) > 1 and numeral[-2] in _SCALES and numeral[-2] not in "十拾":
        digit *= _SCALES[numeral[-2]] // 10  # 一万二 is 12000
    return total + section + digit
