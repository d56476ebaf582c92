"""Chinese numerals and number words, written as digits: 三分之一 is 1/3, 百分之五 is 5%, 一万二千 is 12000."""

from __future__ import annotations

import re
from fractions import Fraction

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
