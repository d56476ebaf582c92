from __future__ import annotations

import math
import re
from collections.abc import Callable
from fractions import Fraction
from random import Random

import pytest

from megatron_dsmath.quickstart import exercises
from megatron_dsmath.quickstart.exercises import Bilingual
from tests.quickstart.arithmetic import formulas, numeric_chains, value

DRAWS = 100


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"-?\d+", text)]


def slope(question: str) -> Fraction:
    function, at = formulas(question)[0].split("=")[1], numbers(formulas(question)[1])[0]
    # The central difference of a polynomial of degree two is its derivative, exactly.
    return (value(function, x=at + 1) - value(function, x=at - 1)) / 2


def series(question: str) -> Fraction:
    count, first, second, _ = numbers(question)
    return Fraction(sum(range(first, first + count * (second - first), second - first)))


# The answer to each question, computed from its text in another way than the exercise does.
ANSWERS: dict[str, Callable[[str], Fraction | float]] = {
    "purchase": lambda question: numbers(question)[2] - sum([numbers(question)[1]] * numbers(question)[0]),
    "discount": lambda question: Fraction(numbers(question)[0]) * (1 - Fraction(numbers(question)[1], 100)),
    "common_divisor": lambda question: math.gcd(*numbers(question)),
    "fraction_sum": lambda question: value(formulas(question)[0]),
    "arithmetic_series": series,
    "right_triangle": lambda question: math.hypot(*numbers(question)),
    "combination": lambda question: math.comb(*reversed(numbers(question))),
    "derivative": slope,
    "meeting": lambda question: Fraction(numbers(question)[0], sum(numbers(question)[1:3])),
    "remainder": lambda question: pow(*numbers(question)),
}


def draws(topic: str) -> list[Bilingual]:
    draw = Random(7)
    return [getattr(exercises, topic)(draw) for _ in range(DRAWS)]


@pytest.mark.parametrize("topic", ANSWERS)
def test_the_answer_follows_from_the_question(topic: str) -> None:
    for english, _ in draws(topic):
        assert value(english.answer) == ANSWERS[topic](english.question), english


@pytest.mark.parametrize("topic", ["linear_equation", "quadratic_equation"])
def test_every_solution_satisfies_its_equation(topic: str) -> None:
    for english, _ in draws(topic):
        left, right = formulas(english.question)[0].split("=")
        for root in numbers(english.answer):
            assert value(left, x=root) == value(right), english


@pytest.mark.parametrize("topic", ANSWERS)
def test_every_equation_between_numbers_holds(topic: str) -> None:
    chains = [chain for pair in draws(topic) for exercise in pair for chain in numeric_chains(exercise.solution)]
    assert len(chains) >= 2 * DRAWS  # at least one in each language's solution
    assert all(len(set(chain)) == 1 for chain in chains)


def test_factored_quadratics_equal_the_expanded_ones() -> None:
    for english, _ in draws("quadratic_equation"):
        expanded, factored = next(formula for formula in formulas(english.solution) if ")(" in formula).split("=")
        assert [value(expanded, x=x) for x in (-3, 0, 11)] == [value(factored, x=x) for x in (-3, 0, 11)]


@pytest.mark.parametrize("topic", [*ANSWERS, "linear_equation", "quadratic_equation"])
def test_both_languages_pose_the_same_problem(topic: str) -> None:
    for english, chinese in draws(topic):
        assert english.answer == chinese.answer
        assert sorted(numbers(english.question)) == sorted(numbers(chinese.question))
        assert re.search("[一-龥]", chinese.question)
        assert not re.search("[一-龥]", english.question)
