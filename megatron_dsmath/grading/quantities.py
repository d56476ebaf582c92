"""Parse numbers with units exactly: 15,600; -1/2; 3\\frac18; 4.5e33; 6.02 \\times 10^{23}; 25\\%; \\$5; 18 元."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import NamedTuple

from megatron_dsmath.grading import units
from megatron_dsmath.grading.notation import compact

LIMIT_DIGITS = 3000
_LIMIT_EXPONENT = 1000
_APPROXIMATION_DIGITS = 6  # a decimal with this many significant digits may be a rounded value
_FLOAT_DIGITS, _FLOAT_NOISE = 15, Fraction(1, 10**12)  # rounding of binary floats: 0.30000000000000004

_SEPARATED = r"[0-9]{1,3}(?:[,\ue000][0-9]{3})+"
_DECIMAL = rf"(?:{_SEPARATED}|[0-9]+)(?:\.[0-9]*)?|\.[0-9]+"
_SIGN = r"[+-]? ?"
_NUMBER = re.compile(rf"({_SIGN})({_DECIMAL})(?:[eE]([+-]?[0-9]{{1,4}}))?")
_POWER_OF_TEN = re.compile(r" ?(?:\\times|\\cdot|\*) ?10 ?\^ ?(?:\{ ?([+-]? ?[0-9]{1,4}) ?\}|([+-]?[0-9]{1,4}))")
_BARE_POWER_OF_TEN = re.compile(rf"({_SIGN})10 ?\^ ?\{{ ?([+-]? ?[0-9]{{1,4}}) ?\}}|({_SIGN})10 ?\^ ?([0-9]{{1,4}})")
_FRACTION = re.compile(
    rf"({_SIGN})\\frac ?(?:\{{ ?({_SIGN}(?:{_DECIMAL})) ?\}}|([0-9])) ?(?:\{{ ?({_SIGN}(?:{_DECIMAL})) ?\}}|([0-9]))"
)
_SLASH = re.compile(rf"({_SIGN}(?:{_DECIMAL})) ?/ ?((?:{_DECIMAL}))(?![0-9])|\(({_SIGN}[0-9]+)\) ?/ ?\(?([0-9]+)\)?")
_MIXED = re.compile(
    r"([+-]? ?)([0-9]{1,20}) ?(?:\\frac ?(?:\{ ?([0-9]{1,20}) ?\}|([0-9])) ?(?:\{ ?([0-9]{1,20}) ?\}|([0-9]))(?![0-9])"
    r"|(?<= )([0-9]{1,20}) ?/ ?([0-9]{1,20})(?![0-9]))"
)
_PERCENT = re.compile(r" ?(?:%|\\text ?\{ ?(?:%|percent|per cent) ?\}|percent(?![a-z])|per cent(?![a-z]))")
_BASE = re.compile(
    r"\(?([0-9A-Za-z]+(?:\.[0-9]+)?)\)? ?_ ?\{? ?(?:\\text ?\{)?"
    r"([0-9]{1,2}|two|three|four|five|six|seven|eight|nine|ten)\}{0,2}"
)
_BASE_NAMES = {
    name: str(value)
    for value, name in enumerate(["two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"], 2)
}


class Quantity(NamedTuple):
    """A number as it is written."""

    value: Fraction  # the number without a percent sign
    is_percent: bool = False
    unit: str = ""  # as `units.unit_name` returns it
    decimals: int | None = None  # digits after the decimal point; None for a fraction


class NumberInBase(NamedTuple):
    """Digits with a base, such as 2516_8. The digits include a minus sign."""

    digits: str
    base: str


def parse(text: str) -> Quantity | None:
    """The quantity in a text in the form of `notation.normalize`; None if the text is anything else."""
    unit = ""
    start = re.match(rf"({_SIGN})(?:([$＄¥￥€£])|(?:US|RMB) ?[$＄]?) ?", text)
    if start and (start[2] or start[0].strip()):
        unit = units.unit_name(start[2] or "dollar") if not text.startswith("RMB") else "yuan"
        text = start[1] + text[start.end() :]
    found = _number_at_start(text)
    if found is None:
        return None
    quantity, rest = found
    percent = _PERCENT.match(rest)
    if percent:
        quantity, rest = quantity._replace(is_percent=True), rest[percent.end() :]
    following = _unit_of(rest)
    return None if following is None else quantity._replace(unit=unit or following)


def parse_number_in_base(text: str) -> NumberInBase | None:
    """The digits and base of a number with a base; None if the text is anything else."""
    sign, text = ("-", text[1:].strip()) if text.startswith("-") else ("", text)
    found = _BASE.fullmatch(text)
    return NumberInBase(sign + found[1].upper(), _BASE_NAMES.get(found[2], found[2])) if found else None


def equal(reference: Quantity, answer: Quantity) -> bool:
    """Whether two quantities are equal. A factor of 100 is a difference.

    20% equals 0.2, never 0.2%. A question may ask for a number of percent, so 20% also equals 20, but only numbers
    above 1 are compared in this way.
    """
    if not units.units_agree(reference.unit, answer.unit):
        return False
    if reference.is_percent == answer.is_percent:
        return _same(reference, answer)
    percentage, number = (reference, answer) if reference.is_percent else (answer, reference)
    decimals = None if percentage.decimals is None else percentage.decimals + 2
    hundredth = percentage._replace(value=percentage.value / 100, decimals=decimals)
    return _same(hundredth, number) or (abs(number.value) > 1 and _same(percentage, number))


def _same(one: Quantity, other: Quantity) -> bool:
    return one.value == other.value or _rounds(one, other.value) or _rounds(other, one.value)


def _rounds(written: Quantity, exact: Fraction) -> bool:
    """Whether a decimal is the exact number truncated or rounded to many digits, or differs by a float's rounding."""
    if not written.decimals:
        return False
    difference = abs(written.value - exact)
    digits = len(str(abs(written.value.numerator * 10**written.decimals // written.value.denominator)))
    last_place = Fraction(1, 10**written.decimals)
    needs_rounding = (exact / last_place).denominator != 1
    if needs_rounding and digits >= _APPROXIMATION_DIGITS and difference < last_place:
        return True
    return digits >= _FLOAT_DIGITS and difference <= abs(exact) * _FLOAT_NOISE


def _number_at_start(text: str) -> tuple[Quantity, str] | None:
    for pattern, read in (
        (_MIXED, _read_mixed), (_FRACTION, _read_fraction), (_SLASH, _read_slash), (_BARE_POWER_OF_TEN, _read_power),
    ):  # fmt: skip
        found = pattern.match(text)
        if found:
            quantity = read(found)
            return None if quantity is None else (quantity, text[found.end() :])
    found = _NUMBER.match(text)
    if found is None or len(found[2]) > LIMIT_DIGITS:
        return None
    value = _decimal(found[1] + found[2])
    decimals = len(found[2].partition(".")[2])
    exponent, rest = found[3], text[found.end() :]
    scale = _POWER_OF_TEN.match(rest)
    if exponent is None and scale:
        exponent, rest = scale[1] or scale[2], rest[scale.end() :]
    if exponent is not None:
        power = int(exponent.replace(" ", ""))
        if abs(power) > _LIMIT_EXPONENT:
            return None
        value, decimals = value * Fraction(10) ** power, max(0, decimals - power)
    return Quantity(value, decimals=decimals), rest


def _decimal(text: str) -> Fraction:
    return Fraction(re.sub(r"[,\ue000 ]", "", text).rstrip("."))


def _read_mixed(found: re.Match[str]) -> Quantity | None:
    above, below = found[3] or found[4] or found[7], found[5] or found[6] or found[8]
    if int(below) == 0:
        return None
    value = int(found[2]) + Fraction(int(above), int(below))
    return Quantity(-value if "-" in found[1] else value)


def _read_fraction(found: re.Match[str]) -> Quantity | None:
    return _ratio(found[2] or found[3], found[4] or found[5], "-" in found[1])


def _read_slash(found: re.Match[str]) -> Quantity | None:
    return _ratio(found[1] or found[3], found[2] or found[4], is_negative=False)


def _read_power(found: re.Match[str]) -> Quantity | None:
    power = int((found[2] or found[4]).replace(" ", ""))
    if abs(power) > _LIMIT_EXPONENT:
        return None
    value = Fraction(10) ** power
    return Quantity(-value if "-" in (found[1] or found[3] or "") else value, decimals=max(0, -power))


def _ratio(above: str, below: str, is_negative: bool) -> Quantity | None:
    if len(above) + len(below) > LIMIT_DIGITS or _decimal(below) == 0:
        return None
    value = _decimal(above) / _decimal(below)
    return Quantity(-value if is_negative else value)


def _unit_of(rest: str) -> str | None:
    """The unit in the text after a number; None if the text is part of a formula."""
    bare = rest.strip(" .")
    if not bare:
        return ""
    if bare.startswith("^\\circ"):
        return units.unit_name(compact(bare)) if len(bare) < 12 else None
    names_unit = bare.startswith("\\text") or bare[0] in "¢$＄" or "\u4e00" <= bare[0] <= "\u9fff"
    names_unit = names_unit or (units.is_known_unit(bare) and (len(bare) > 1 or rest.startswith(" ")))
    names_unit = names_unit or (rest.startswith(" ") and re.match(r"[A-Za-z]{3,}", bare) is not None)
    return units.unit_name(bare) if names_unit and _is_words(bare) else None


def _is_words(text: str) -> bool:
    """Whether a text is only words, with an optional power at the end."""
    text = re.sub(r"\\text ?\{([^{}\\$]*)\}", r"\1", text)
    text = re.sub(r" ?\^ ?\{?[23]\}?$", "", text)
    return re.fullmatch(r"[A-Za-z\u4e00-\u9fff .,'()$＄¢/-]*", text) is not None
