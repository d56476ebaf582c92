from __future__ import annotations

import contextlib
import doctest
import io
import re
from itertools import islice
from random import Random

import numpy as np
import pytest
import sympy

from megatron_dsmath.quickstart.formal import generate_sessions
from tests.quickstart.arithmetic import value


@pytest.fixture(scope="module")
def documents() -> list[str]:
    return list(islice(generate_sessions(Random(5)), 300))


def of_kind(documents: list[str], mark: str) -> list[str]:
    found = [document for document in documents if mark in document]
    assert len(found) >= 20  # six kinds, 300 documents
    return found


def test_sympy_prints_what_the_sessions_show(documents: list[str]) -> None:
    runner = doctest.DocTestRunner(verbose=False)
    for session in of_kind(documents, "from sympy import"):
        parsed = doctest.DocTestParser().get_doctest(session, {}, "session", None, 0)
        assert runner.run(parsed, out=lambda text: None).failed == 0, session


def test_programs_print_the_output_below_them(documents: list[str]) -> None:
    for document in of_kind(documents, "\n# output\n"):
        program, expected = document.split("\n# output\n")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(program, "program", "exec"), {})
        assert printed.getvalue().strip() == expected


PARI = {
    r"gcd\((\d+), (\d+)\)": sympy.gcd,
    r"lcm\((\d+), (\d+)\)": sympy.lcm,
    r"Mod\((\d+), (\d+)\)\^(\d+)": lambda a, m, b: f"Mod({sympy.Mod(sympy.Integer(a) ** b, m)}, {m})",
    r"binomial\((\d+), (\d+)\)": sympy.binomial,
    r"divrem\((\d+), (\d+)\)": lambda a, m: f"{list(map(int, divmod(a, m)))}~",
    r"sqrtint\((\d+)\)": lambda a: sympy.floor(sympy.sqrt(a)),
    r"sumdigits\((\d+)\)": lambda a: sum(sympy.ntheory.digits(a)[1:]),
    r"factor\((\d+)\)\[,1\]~": sympy.primefactors,
    r"isprime\((\d+)\)": lambda a: int(sympy.isprime(a)),
}


def test_sympy_agrees_with_every_pari_result(documents: list[str]) -> None:
    seen = set()
    for session in of_kind(documents, "? "):
        for command, result in re.findall(r"\? (.+)\n%\d+ = (.+)", session):
            pattern, match = next((p, m) for p in PARI if (m := re.fullmatch(p, command)))
            assert str(PARI[pattern](*map(int, match.groups()))) == result, command
            seen.add(pattern)
    assert seen == set(PARI)


def test_numpy_agrees_with_every_octave_result(documents: list[str]) -> None:
    block = r"A = \[(.+); (.+)\];\n>> v = \[(.+); (.+)\];\n>> A \* v\nans =\n\n(.+)\n(.+)\n\n"
    block += r">> .+\nans = (.+)\n>> .+\nans = (.+)"
    for session in of_kind(documents, ">> A = "):
        for first, second, x, y, top, bottom, trace, determinant in re.findall(block, session):
            matrix = np.array([first.split(), second.split()], dtype=float)
            assert (matrix @ [int(x), int(y)]).tolist() == [int(top), int(bottom)]
            assert np.trace(matrix) == int(trace)
            assert np.linalg.det(matrix) == pytest.approx(int(determinant), abs=1e-9)  # LU rounds; entries are below 10


def test_every_lean_statement_is_true(documents: list[str]) -> None:
    seen = set()
    for document in of_kind(documents, "import Mathlib"):
        for kind, statement in re.findall(r"theorem (\w+)_\d+ (.+) := .+", document):
            claim = statement.replace(" : ℕ)", ")").rpartition(": ")[2] if kind != "less" else statement
            assert holds(kind, claim), statement
            seen.add(kind)
    assert seen == {"sum", "divides", "gcd", "square", "product", "less", "residue"}


def holds(kind: str, claim: str) -> bool:
    numbers = [int(number) for number in re.findall(r"\d+", claim)]
    if kind == "divides":
        return numbers[1] % numbers[0] == 0
    if kind == "gcd":
        return sympy.gcd(numbers[0], numbers[1]) == numbers[2]
    if kind == "less":  # a < x gives a c < c x, for c > 0
        bound, product, factor = numbers
        return bound * factor == product and factor > 0
    left, right = claim.split(" = ")
    return all(value(left, x=x, y=x + 3) == value(right, x=x, y=x + 3) for x in (-4, 0, 1, 9))
