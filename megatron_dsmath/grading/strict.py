"""Our verdict: strict about factors of 100, brackets, units and order. Formulas are compared by a given function."""

from __future__ import annotations

import re
from collections.abc import Callable

from megatron_dsmath.grading import quantities, structure, units
from megatron_dsmath.grading.notation import DOLLAR, compact, normalize
from megatron_dsmath.grading.quantities import NumberInBase, Quantity
from megatron_dsmath.grading.structure import Bracketed, Equation, Formula, Listing, Matrix, Union, Words

TextComparison = Callable[[str, str], bool]
"""Whether a reference (first) and an answer are equal. A symbolic one is called if text and numbers do not decide."""
Parsed = Quantity | NumberInBase | structure.Structure

_LIMIT_DEPTH = 12
_LIMIT_PARTS = 64
_CHOICE = re.compile(r"\(?([A-J])\)?(?=$|[\s.:,、)])")
_THOUSANDS = re.compile(r"-?\d{1,3}(?:,\d{3})+")
_UNIT_AFTER = re.compile(
    r" ?\\text ?\{([^{}]*)\}( ?\^ ?\{?[23]\}?)?$|(?<=[\w})]) ((?:[a-z]{2,} ?)+(?:\^ ?\{?[23]\}?)?)$"
)


def is_correct(reference: str, answer: str, symbolic: TextComparison) -> bool:
    """Whether an extracted answer equals the reference."""
    given = normalize(answer)
    return bool(given) and _same(normalize(reference), given, symbolic, 0)


def _same(reference: str, answer: str, symbolic: TextComparison, depth: int) -> bool:
    if depth > _LIMIT_DEPTH:
        return False
    reference, answer = structure.strip_parentheses(reference), structure.strip_parentheses(answer)
    wanted, given = _parse(reference), _parse(answer)
    if isinstance(wanted, Quantity) and isinstance(given, Listing):  # 15, 600
        given = quantities.parse(re.sub(r", +(?=\d{3}(?!\d))", ",", answer)) or given
    if isinstance(wanted, Quantity) and isinstance(given, Quantity):
        return quantities.equal(wanted, given)
    if isinstance(wanted, NumberInBase) or isinstance(given, NumberInBase):
        return _same_digits(wanted, given, reference, answer)
    if not isinstance(wanted, Quantity) and not isinstance(given, Quantity) and compact(reference) == compact(answer):
        return True
    return _same_structure(
        wanted, given, reference, answer, lambda one, other: _same(one, other, symbolic, depth + 1), symbolic
    )


def _parse(text: str) -> Parsed:
    in_text = re.fullmatch(r"\\text ?\{([^{}]*)\}", text)
    quantity = quantities.parse(in_text[1].strip() if in_text else text)
    return quantity or quantities.parse_number_in_base(text) or structure.parse(text)


def _same_digits(wanted: object, given: object, reference: str, answer: str) -> bool:
    if isinstance(wanted, NumberInBase):
        return wanted == given if isinstance(given, NumberInBase) else wanted.digits == compact(answer).upper()
    return isinstance(given, NumberInBase) and given.base == "10" and given.digits == compact(reference).upper()


def _same_structure(
    wanted: Parsed, given: Parsed, reference: str, answer: str, same: TextComparison, symbolic: TextComparison
) -> bool:
    choice = re.fullmatch(r"[A-J]", _plain_letters(reference))
    if choice:
        found = _CHOICE.match(_plain_letters(answer))
        return found is not None and found[1] == choice[0]
    if isinstance(given, Equation) and not isinstance(wanted, Equation):
        return same(reference, given.right)
    if isinstance(wanted, Equation):
        return _same_equation(wanted, given, reference, answer, same, symbolic)
    if isinstance(wanted, Matrix) and isinstance(given, Matrix):
        return wanted.is_determinant == given.is_determinant and _in_order(wanted.entries, given.entries, same)
    if isinstance(wanted, Union) and isinstance(given, Union):
        return _in_any_order(wanted.parts, given.parts, same)
    if isinstance(wanted, Bracketed) and isinstance(given, Bracketed):
        brackets_agree = (wanted.opening, wanted.closing) == (given.opening, given.closing)
        in_order = _in_any_order if wanted.opening == r"\{" else _in_order
        return brackets_agree and in_order(wanted.parts, given.parts, same)
    parts, given_parts = _list_parts(wanted, reference), _list_parts(given, answer)
    if parts and given_parts:
        is_ordered = isinstance(wanted, Listing) and wanted.is_ordered
        return (_in_order if is_ordered else _in_any_order)(parts, given_parts, same)
    if isinstance(wanted, Words) or isinstance(given, Words):
        return wanted == structure.as_words(answer)
    if isinstance(wanted, Formula | Quantity) and isinstance(given, Formula | Quantity):
        return _same_formula(reference, answer, symbolic)
    return False


def _plain_letters(text: str) -> str:
    return re.sub(r"\\text ?\{([^{}]*)\}", r"\1", text).strip(" .()") if len(text) < 400 else text


def _list_parts(given: object, text: str) -> list[str]:
    """The parts of an answer that may be a list, such as 1,234, which may be two numbers. Empty for any other."""
    if isinstance(given, Listing) or (isinstance(given, Bracketed) and given.opening == r"\{"):
        return given.parts
    return text.split(",") if isinstance(given, Quantity) and _THOUSANDS.fullmatch(text) else []


def _same_equation(
    wanted: Equation, given: Parsed, reference: str, answer: str, same: TextComparison, symbolic: TextComparison
) -> bool:
    if not isinstance(given, Equation):
        return structure.is_name(wanted.left) and not isinstance(given, Words) and same(wanted.right, answer)
    if compact(wanted.left) == compact(given.left):
        return same(wanted.right, given.right)
    if structure.is_name(wanted.left) and structure.is_name(given.left):
        return False
    return symbolic(reference, answer)


def _same_formula(reference: str, answer: str, symbolic: TextComparison) -> bool:
    wanted, wanted_unit = _without_unit(reference)
    given, given_unit = _without_unit(answer)
    if not units.units_agree(wanted_unit, given_unit) or not wanted or not given:
        return False
    return compact(wanted) == compact(given) or symbolic(wanted, given)


def _without_unit(formula: str) -> tuple[str, str]:
    formula = formula.removeprefix(DOLLAR)
    found = _UNIT_AFTER.search(formula)
    if found and found.start() > 0:
        return formula[: found.start()].strip(), units.unit_name((found[1] or found[3]) + (found[2] or ""))
    degrees = formula.removesuffix("^\\circ")
    if degrees != formula and not re.search(r"\\(?:sin|cos|tan|cot|sec|csc)", formula):
        return degrees.strip(), "degree"
    return formula, ""


def _in_order(wanted: list[str], given: list[str], same: TextComparison) -> bool:
    return len(wanted) == len(given) <= _LIMIT_PARTS and all(map(same, wanted, given))


def _in_any_order(wanted: list[str], given: list[str], same: TextComparison) -> bool:
    if len(wanted) != len(given) or len(wanted) > _LIMIT_PARTS:
        return False
    left = list(given)
    for part in wanted:
        match = next((index for index, other in enumerate(left) if compact(other) == compact(part)), None)
        if match is None:
            match = next((index for index, other in enumerate(left) if same(part, other)), None)
        if match is None:
            return False
        del left[match]
    return True
