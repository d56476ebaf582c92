"""Programs in a text, and what is told of them: as DeepSeek-Math's run_tool_integrated_eval.py and run_pal_eval.py."""

from __future__ import annotations

import pytest

from megatron_dsmath.evaluation.answering import answering_program, programs_so_far, told
from megatron_dsmath.sandbox.outcome import Outcome

FIRST = "Let us see.\n```python\nimport math\nx = 3\ndef double(n):\n    print(n)\n    return 2 * n\nprint(x)\n```\n"


def test_the_second_program_goes_on_with_the_first_but_does_not_print_it_again() -> None:
    text = FIRST + "```output\n3\n```\nSo\n```python\nprint(double(x))\n```\n"
    assert programs_so_far(text) == (
        "import math\nx = 3\ndef double(n):\n    print(n)\n    return 2 * n\nprint(double(x))"
    )


def test_a_text_that_begins_with_its_program_has_it() -> None:
    assert programs_so_far("```python\nprint(1)\n```") == "print(1)"


@pytest.mark.parametrize("text", ["", "no program", FIRST + "So it is 3.", "```\nprint(1)\n```", "```python\n```"])
def test_a_call_without_a_program_runs_nothing(text: str) -> None:
    assert programs_so_far(text) is None


def test_the_program_of_a_word_problem_prints_its_solution() -> None:
    program = answering_program("\n\ndef solution():\n    return 7", "solution")
    assert program == "\n\ndef solution():\n    return 7\n\nprint(solution())\n"
    assert answering_program(" \n", "solution") is None


def test_the_imports_of_a_math_program_come_first() -> None:
    output = "\n```\nanswer = sqrt(2)\n```\nThe imports required are\n```\nfrom sympy import sqrt\n```\nI hope"
    program = answering_program(output, "answer")
    assert program == "\nfrom sympy import sqrt\n\n\n\nanswer = sqrt(2)\n\n\nprint(answer)\n"
    assert answering_program("\n```\nanswer = 2\n```\n", "answer") is None


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (Outcome("ok", " 7\n", "", "", 0.1), "7"),
        (Outcome("ok", "a" * 60 + "b" * 60, "", "", 0.1), "a" * 50 + "..." + "b" * 50),
        (Outcome("ok", "a" * 100, "", "", 0.1), "a" * 100),
        (Outcome("ok", "", "", "", 0.1), "Runtime errors:"),
        (Outcome("error", "7\n", "trace", "NameError: x", 0.1), "Runtime errors: NameError: x"),
        (Outcome("timeout", "", "", "", 9.0), "Runtime errors: timeout"),
        (None, "no program to run"),
    ],
)
def test_what_the_model_is_told(outcome: Outcome | None, expected: str) -> None:
    assert told(outcome, 100) == expected
