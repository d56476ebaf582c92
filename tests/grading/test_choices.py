"""The letter that an output chooses, in the form of the paper's shots and in other forms, English and Chinese."""

from __future__ import annotations

import time

import pytest

from megatron_dsmath.grading.extraction import extract

SHOT = "So the equation gives $n=480/30=\\boxed{16}$.\nFinal Answer: The final answer is (C). I hope it is correct."
STATED = {
    SHOT: "C",
    "the domain is $\\boxed{[2,5)}$.\nFinal Answer: The final answer is (B). I hope it is correct.": "B",
    "So the answer is $\\boxed{B}$.": "B",
    "So the answer is $\\boxed{\\text{(B)}}$.": "B",
    "So the answer is $\\boxed{(B) 4}$.": "B",
    "**Answer: C**": "C",
    "The answer is A) $f(-6)=0$": "A",
    "The correct choice is option D.": "D",
    "The final answer is (B) because A is smaller.": "B",
    "Options (A) and (B) are wrong. The final answer is (C).": "C",
    "The answer is B, since option A is smaller.": "B",
    "Therefore, the final answer is 24, which is choice (D).": "D",
    "It is 24.\n(D)": "D",
    "B) 4": "B",
    "所以答案是 C": "C",
    "故选：C": "C",
    "故选 (C)。": "C",
    "因此，正确选项是B": "B",
    "答案为\\boxed{C}": "C",
    "答案是：C、充分必要条件": "C",
    "答案是C选项。": "C",
    "答案是肯定的，因为它递增。\n综上所述，选项为 (C) 充分必要条件。\n答案是 A": "A",
    "故选B，因为选项A错误。": "B",
    "故选：AC": "AC",
    "The answer is A or B.": "AB",
    "So the answer is $\\boxed{A B D}$.": "ABD",
    "The answer is A C.": "AC",
}
NOT_STATED = [
    "So the answer is $\\boxed{24}$.",
    "So the answer is $\\boxed{A \\cap B}$.",
    "The answer is B^2 + C.",
    "The answer is A Big number.",
    "The answer is A B C plus one.",
    "I don't know. A triangle has three sides.",
    "A function is given, and E is a point of it.",
    "集合 A 和 B 相交。",
    "答案是肯定的。",
    "",
]


@pytest.mark.parametrize("task", ["sat", "mmlu-stem", "gaokao-mathqa"])
def test_the_stated_letter_is_the_choice(task: str) -> None:
    assert {output: extract(output, task) for output in STATED} == STATED


@pytest.mark.parametrize("output", NOT_STATED)
def test_a_letter_that_is_not_stated_as_the_answer_is_not_a_choice(output: str) -> None:
    assert extract(output, "mmlu-stem") is None


def test_an_invented_question_does_not_change_the_choice() -> None:
    assert extract(f"{SHOT}\n\nProblem:\nWhat?\n(A) 1, (B) 2\nSolution:\nThe final answer is (A).", "sat") == "C"


@pytest.mark.parametrize("part", ["答案是 (A)" + 190 * " ", "\\boxed{A, ", "choice (", "so A ", "(A) "])
def test_a_megabyte_of_statements_is_read_in_linear_time(part: str) -> None:
    started = time.process_time()
    extract(part * (1_000_000 // len(part)), "sat")
    assert time.process_time() - started < 5  # the bound of the other hostile outputs
