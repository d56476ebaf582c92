"""Units after a number, and whether two of them are the same."""

from __future__ import annotations

import re

_NAMES = {
    "dollar": "$ ＄ dollar dollars usd us$ 美元 美金 刀",
    "yuan": "¥ ￥ yuan rmb cny 元 块 块钱 元钱 人民币",
    "cent": "¢ cent cents 美分",
    "jiao": "角",
    "fen": "分钱",
    "euro": "€ euro euros 欧元",
    "pound sterling": "£",
    "degree": r"^\circ degree degrees 度 deg",
    "degree celsius": r"^\circc 摄氏度",
    "percent": "% percent per\ue001cent 个百分点",
    "kilometre": "km kilometer kilometers kilometre kilometres 千米 公里",
    "metre": "m meter meters metre metres 米",
    "decimetre": "dm 分米",
    "centimetre": "cm centimeter centimeters centimetre centimetres 厘米",
    "millimetre": "mm millimeter millimeters 毫米",
    "inch": "in inch inches 英寸",
    "foot": "ft foot feet 英尺",
    "yard": "yd yard yards 码",
    "mile": "mi mile miles 英里",
    "hectare": "ha hectare hectares 公顷",
    "tonne": "t ton tons tonne tonnes 吨",
    "kilogram": "kg kilogram kilograms 千克 公斤",
    "jin": "斤",
    "gram": "g gm gram grams 克",
    "milligram": "mg 毫克",
    "pound": "lb lbs pound pounds 磅",
    "ounce": "oz ounce ounces 盎司",
    "litre": "l L liter liters litre litres 升",
    "millilitre": "ml mL 毫升",
    "gallon": "gal gallon gallons 加仑",
    "second": "s sec second seconds 秒 秒钟",
    "minute": "min minute minutes 分钟",
    "hour": "h hr hrs hour hours 小时 个小时",
    "day": "day days 天 日",
    "week": "week weeks 周 星期 个星期",
    "month": "month months 月 个月",
    "year": "year years 年",
    "mile per hour": "mph",
    "unit": "unit units",
    "ante meridiem": "am",
    "post meridiem": "pm",
    "person": "person persons people 人 个人 名 位",
}
_UNIT_OF = {name: unit for unit, names in _NAMES.items() for name in names.replace("\ue001", " ").split(" ")}

_POWER = re.compile(r"\^ ?\{?([23])\}?$|([²³])$")
_SQUARE = re.compile(r"^(?:square|sq\.?|平方) ?|^(?:cubic|cu\.?|立方) ?")
_WORD = re.compile(r"[A-Za-z]+|[\u4e00-\u9fff]")
_IGNORED_WORDS = {"of", "the", "a", "an", "in", "per", "total", "altogether", "each", "and", "is", "are"}
_IGNORED_WORDS |= {"的", "个", "只", "共", "了", "一"}


def unit_name(text: str) -> str:
    """The same name for all spellings of a unit: `cm^2`, `square centimeters` and 平方厘米. Unknown words are kept.

    Empty if the text names no unit, as 个.
    """
    text = re.sub(r"\\text ?\{([^{}]*)\}", r"\1", text).replace("\ue000", "").strip(" .。,*$\\")
    power = ""
    found = _SQUARE.match(text)
    if found:
        power = "^2" if found[0][0] in "s平" else "^3"
        text = text[found.end() :]
    raised = _POWER.search(text)
    if raised:
        power = f"^{raised[1] or {'²': '2', '³': '3'}[raised[2]]}"
        text = text[: raised.start()].strip()
    name = _UNIT_OF.get(text) or _UNIT_OF.get(text.lower()) or _UNIT_OF.get(text.lower().replace(".", ""))
    if name is None:
        name = " ".join(word for word in _WORD.findall(text.lower()) if word not in _IGNORED_WORDS)
    return name + power if name else ""


def is_known_unit(text: str) -> bool:
    """Whether the text is the name of a unit in the table."""
    return unit_name(text).partition("^")[0] in _NAMES


def units_agree(reference: str, answer: str) -> bool:
    """Whether two units, as `unit_name` returns them, are the same or one of them is missing.

    Unknown words are counted things. They agree if they share a word (`ways`, `ways to choose`), and always with
    `unit`.
    """
    if not reference or not answer or reference == answer:
        return True
    bases = {reference.partition("^")[0], answer.partition("^")[0]}
    if "unit" in bases:  # units, square units: any unit of the same power
        return reference.partition("^")[2] == answer.partition("^")[2] or answer == "unit"
    if len(bases & set(_NAMES)) == 2:
        return False
    if reference.replace(" ", "") == answer.replace(" ", ""):
        return True
    words = [{word.removesuffix("s") for word in unit.split()} for unit in (reference, answer)]
    return bool(words[0] & words[1])
