from __future__ import annotations

import re
from fractions import Fraction
from itertools import islice
from random import Random

import numpy as np
import pytest
import sympy

from megatron_dsmath.quickstart.papers import generate_articles
from tests.quickstart.arithmetic import numeric_chains, value


@pytest.fixture(scope="module")
def sections() -> list[str]:
    return [
        section for article in islice(generate_articles(Random(5)), 150) for section in article.split("\\section")[1:]
    ]


def found(sections: list[str], pattern: str) -> list[tuple[str, ...]]:
    matches = [match.groups() for section in sections if (match := re.search(pattern, section, re.DOTALL))]
    assert len(matches) >= 20  # eight kinds of theorem, some 450 sections
    return matches


def test_every_equation_between_numbers_holds(sections: list[str]) -> None:
    chains = [chain for section in sections for chain in numeric_chains(section)]
    assert len(chains) > 100
    assert all(len(set(chain)) == 1 for chain in chains)


def test_sums_of_linear_terms_are_what_adding_gives(sections: list[str]) -> None:
    pattern = r"\\sum_\{k=1\}\^n \((.+?)\) = (.+?)\.\n.+put \$n = (\d+)\$: the sum is \$(\d+)\$"
    for term, closed, count, total in found(sections, pattern):
        assert sum(value(term, k=k) for k in range(1, int(count) + 1)) == int(total) == value(closed, n=int(count))


def test_integrals_are_sympys(sections: list[str]) -> None:
    x = sympy.Symbol("x")
    for power, top, area in found(sections, r"\\int_0\^a x\^\{(\d+)\}.+take \$a = (\d+)\$: the integral is \$(.+?)\$"):
        assert sympy.integrate(x ** int(power), (x, 0, int(top))) == sympy.Rational(*value(area).as_integer_ratio())


def test_eigenvalues_are_numpys(sections: list[str]) -> None:
    for *entries, large, small in found(
        sections, r"A = .+?(\d+) & (\d+) .+? (\d+) & (\d+) .+? are \$(.+?)\$ and \$(.+?)\$"
    ):
        matrix = np.array(entries, dtype=float).reshape(2, 2)
        # Entries are below 21: rounding in fp64 stays far below 1e-9.
        assert np.linalg.eigvalsh(matrix) == pytest.approx(sorted([int(large), int(small)]), abs=1e-9)


def test_contractions_converge_to_their_limit(sections: list[str]) -> None:
    pattern = (
        r"x_n / (\d+) \+ (\d+)\$.+?converges to \$(.+?)\$.+x_0 = (-?\d+)\$ gives \$x_1 = (.+?)\$ and \$x_2 = (.+?)\$"
    )
    for divisor, shift, limit, start, first, second in found(sections, pattern):
        orbit = [Fraction(start)]
        for _ in range(60):
            orbit.append(orbit[-1] / int(divisor) + int(shift))
        assert orbit[1:3] == [value(first), value(second)]
        assert abs(orbit[-1] - value(limit)) < Fraction(1, 10**9)  # the distance halves at least, 60 times


def test_quadratic_forms_keep_their_bound(sections: list[str]) -> None:
    pattern = r"we have \$(.+?) \\ge (\d+)\$.+x = (\d+)\$\..+at \$x = (-?\d+)\$ the left side equals \$(\d+)\$"
    for form, bound, argument, point, result in found(sections, pattern):
        assert value(form, x=int(argument)) == int(bound)
        assert min(value(form, x=x) for x in range(-30, 40)) == int(bound)
        assert value(form, x=int(point)) == int(result)


def test_roots_called_irrational_are(sections: list[str]) -> None:
    pattern = r"\\sqrt\{(\d+)\}\$ is irrational.+between \$(\d+)\$ and \$(\d+)\$"
    for number, below, above in found(sections, pattern):
        assert sympy.sqrt(int(number)).is_irrational
        assert int(below) < sympy.sqrt(int(number)) < int(above)


def test_labels_are_referred_to(sections: list[str]) -> None:
    for section in sections:
        assert re.findall(r"\\label\{(.+?)\}", section) == re.findall(r"\\ref\{(.+?)\}", section)
