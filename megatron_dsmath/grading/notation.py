"""Many ways to type a formula, made one: LaTeX's variants, Unicode's signs, spaces. Text in, text out; all linear."""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

THOUSANDS = "\ue000"  # a separator that is no comma of a list
DOLLAR = "＄"  # money, where $ would be mathematics
ROW_END = "\ue002"  # of a matrix
LIMIT_CHARACTERS = 4000  # a longer answer is none: the longest reference of the paper's sets has 130
_SIGNS = {
    "−": "-", "–": "-", "﹣": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "π": r"\pi ",
    "∞": r"\infty ", "°": r"^\circ ", "º": r"^\circ ", "℃": r"^\circ C", "∪": r"\cup ",
    "∩": r"\cap ", "∈": r"\in ", "≤": r"\le ", "≥": r"\ge ", "⩽": r"\le ", "⩾": r"\ge ", "≠": r"\ne ",
    "±": r"\pm ", "θ": r"\theta ", "α": r"\alpha ", "β": r"\beta ", "λ": r"\lambda ", "ω": r"\omega ",
    "∅": r"\emptyset ", "，": ",", "；": ";", "、": ",", "：": ":", "（": "(", "）": ")", "％": "%",
}  # fmt: skip
_SIGNS |= {character: f"^{{{unicodedata.digit(character)}}}" for character in "⁰¹²³⁴⁵⁶⁷⁸⁹"}
_SIGNS |= {character: f"_{{{unicodedata.digit(character)}}}" for character in "₀₁₂₃₄₅₆₇₈₉"}
_SIGNS |= {chr(0x2460 + place): rf"\textcircled{{{place + 1}}}" for place in range(20)}
_SIGNS |= {
    character: f" {unicodedata.normalize('NFKC', character).replace('⁄', '/')} " for character in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞"
}
_TRANSLATION = str.maketrans(_SIGNS)
_INVISIBLE = re.compile("[\x00-\x08\x0b-\x1f\x7f\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]")
_RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\\\(?:\[[^\[\]]*\])?|\\cr(?![A-Za-z])", ROW_END),
        (r"[,，]\s?\\!\s?(?=\d)|\{,\}(?=\d)|\\,(?=\d{3}(?!\d))", THOUSANDS),  # surely a thousands separator
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
)
_WRAPPERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("**", "**"), ("`", "`"), ("__", "__"))
_END = " \n\t.。,;:"


def unified(text: str) -> str:
    """`text` in one notation, spaces single. Longer than LIMIT_CHARACTERS, it comes back empty."""
    if len(text) > LIMIT_CHARACTERS:
        return ""
    text = unwrapped(unicodedata.normalize("NFKC", _INVISIBLE.sub("", text).translate(_TRANSLATION)))
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    if text.count("$") > 1:  # several formulas in one sentence
        text = text.replace("$", " ")
    if not text.isascii():
        text = with_digits(text)
    return unwrapped(text)


def unwrapped(text: str) -> str:
    """Without the signs of mathematics and emphasis around it, and without what ends a sentence."""
    before = None
    while text != before:
        before = text
        text = text.strip(" \n\t").rstrip(_END)
        if text.endswith("\\"):
            text = text[:-1]
        for opening, closing in _WRAPPERS:
            inside = text[len(opening) : -len(closing)]
            if (
                len(text) > len(opening) + len(closing)
                and text.startswith(opening)
                and text.endswith(closing)
                and opening not in inside
                and closing not in inside
            ):
                text = inside
    return re.sub(r"^\*\*|\*\*$", "", text)


def compact(text: str) -> str:
    """For comparison as text: no spaces, no braces around one sign, no signs of multiplication but between digits."""
    text = re.sub(r"\\text ?\{([^{}]*)\}", r"\1", text.replace("\ue000", ""))
    text = re.sub(r"\{(\w|\\[A-Za-z]+)\}", r" \1", text)
    text = re.sub(r"\\cdot(?![A-Za-z])|\\times(?![A-Za-z])", "*", text)
    text = re.sub(r"(?<!\d) | (?!\d)", "", text)
    return re.sub(r"(?<!\d)\*|\*(?!\d)|[$＄]", "", text)


def closing_braces(text: str, brace: re.Pattern[str]) -> dict[int, int]:
    """Where each opening brace is closed, in one pass; `brace` finds what is one."""
    closings, opened = {}, []
    for found in brace.finditer(text):
        if found[0] == "{":
            opened.append(found.start())
        elif found[0] == "}" and opened:
            closings[opened.pop()] = found.start()
    return closings


def split(text: str, separators: str) -> list[str]:
    """The pieces between separators that stand in no bracket. `separators` are single characters."""
    pieces, depth, start = [], 0, 0
    for place, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        elif character in separators and depth <= 0:
            pieces.append(text[start:place].strip())
            start = place + 1
    return [*pieces, text[start:].strip()]


_DIGITS = {character: value for value, character in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2}
_DIGITS |= {character: value for value, character in enumerate("壹贰叁肆伍陆柒捌玖", 1)}
_TENS = {"十": 10, "百": 100, "千": 1000, "拾": 10, "佰": 100, "仟": 1000}
_MYRIADS = {"万": 10**4, "亿": 10**8}
_NUMERAL = "[零〇一二两三四五六七八九十百千万亿壹贰叁肆伍陆柒捌玖拾佰仟点]"
_AMOUNT = rf"(?:[0-9]+(?:\.[0-9]+)?[万亿]?|{_NUMERAL}+)"
_PERCENT = re.compile(rf"百分之({_AMOUNT})")
_MIXED = re.compile(rf"({_AMOUNT})又({_AMOUNT})分之({_AMOUNT})")
_FRACTION = re.compile(rf"({_AMOUNT})分之({_AMOUNT})")
_HALF = re.compile(r"一半|二分之一")
_MYRIAD = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s?([千百]?[万亿]|千(?![克米瓦卡升])|百(?!分))")
_WHOLE = re.compile(rf"(负?)({_NUMERAL}+)")
_OF_A_THOUSAND = ("克", "米", "瓦", "卡", "升")  # 千克 is a unit, no number


def with_digits(text: str) -> str:
    """The text with its Chinese numbers in digits. A lone 一 or 两 within words (一样) stays a word."""
    text = _PERCENT.sub(lambda match: f"{_digits(match[1])}%", text)
    text = _MIXED.sub(lambda match: f"{_digits(match[1])} {_digits(match[3])}/{_digits(match[2])}", text)
    text = _HALF.sub("1/2", text)
    text = _FRACTION.sub(lambda match: f"{_digits(match[2])}/{_digits(match[1])}", text)
    text = _MYRIAD.sub(_myriad, text)
    return _WHOLE.sub(lambda match: _whole(match, text), text)


def _myriad(match: re.Match[str]) -> str:
    scale = 1
    for character in match[2]:
        scale *= _TENS.get(character) or _MYRIADS[character]
    return _written(Fraction(match[1]) * scale)


def _whole(match: re.Match[str], text: str) -> str:
    numeral, unit = match[2], ""
    if numeral.endswith("千") and text.startswith(_OF_A_THOUSAND, match.end()):
        numeral, unit = numeral[:-1], "千"
    if len(numeral) == 1 and "一" <= text[match.start() - 1 : match.start()] <= "鿿":
        return match[0]
    value = _value(numeral)
    return match[0] if value is None else ("-" if match[1] else "") + _written(value) + unit


def _digits(amount: str) -> str:
    if amount[0].isascii():
        return _MYRIAD.sub(_myriad, amount)
    value = _value(amount)
    return amount if value is None else _written(value)


def _written(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.12g}"


def _value(numeral: str) -> Fraction | None:
    """The number a numeral means; None where it means none, as 点 alone."""
    whole, point, decimals = numeral.partition("点")
    if point:
        if not decimals or any(character not in _DIGITS for character in decimals):
            return None
        fraction = Fraction(int("".join(str(_DIGITS[character]) for character in decimals)), 10 ** len(decimals))
        before = _integer(whole)
        return None if before is None else before + fraction
    integer = _integer(whole)
    return None if integer is None else Fraction(integer)


def _integer(numeral: str) -> int | None:
    if not numeral or len(numeral) > 40:
        return None
    if len(numeral) > 1 and all(character in _DIGITS for character in numeral):  # 二〇二四
        return int("".join(str(_DIGITS[character]) for character in numeral))
    total = section = digit = 0
    for place, character in enumerate(numeral):
        if character in _DIGITS:
            digit = _DIGITS[character]
        elif character in _TENS:
            section += (digit or (1 if place == 0 or numeral[place - 1] in "零万亿" else 0)) * _TENS[character]
            digit = 0
        else:
            total = (total + section + digit) * _MYRIADS[character]
            section = digit = 0
    if digit and len(numeral) > 1 and numeral[-2] in _TENS | _MYRIADS and numeral[-2] not in "十拾":
        digit *= (_TENS | _MYRIADS)[numeral[-2]] // 10  # 一万二 is 12000
    return total + section + digit
