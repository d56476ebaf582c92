from __future__ import annotations

import pytest

from megatron_dsmath.grading.grade import Attempt, Grader
from megatron_dsmath.grading.paper_verdict import extract, rewrite

# Reference and answer: wrongly accepted by the harness (deepseek-ai/DeepSeek-Math, evaluation/), and wrongly rejected.
LENIENT = [("1", "100"), ("100", "1"), ("[1,2]", "(1,2)"), ("0.001", "0.0005"), (r"\frac{1}{3}", "0.333"), ("5", "500")]
STRICT = [(r"\{1,2\}", r"\{2,1\}"), ("18", "18dollars")]
BOTH = [("18", "18.0"), (r"\frac12", r"\dfrac{1}{2}"), (r"2\sqrt{3}", r"\sqrt{12}"), ("5", "x=5"), ("(1,2)", "(1, 2)")]


def test_the_papers_verdict_and_ours_differ_where_the_harness_is_lenient_or_strict(grader: Grader) -> None:
    attempts = [Attempt(rf"\boxed{{{answer}}}", reference, "math") for reference, answer in [*LENIENT, *STRICT, *BOTH]]
    verdicts = grader.grade(attempts)
    assert [verdict.correct_as_the_paper for verdict in verdicts] == [True] * 6 + [False] * 2 + [True] * 5
    assert [verdict.correct for verdict in verdicts] == [False] * 6 + [True] * 7


@pytest.mark.parametrize(
    ("output", "task", "answers"),
    [
        (r"\boxed{1} and \boxed{\frac12}", "math", ["1", r"\frac{1}{2}"]),
        (r"\boxed{1} and \boxed{2}", "gsm8k", ["2"]),
        ("The answer is 18 dollars.", "gsm8k", ["18dollars"]),
        (r"\boxed 5, the answer is 5", "gsm8k", [""]),
        ("The final answer is $3$. I hope it is correct.", "math", ["3"]),
        ("```output\n42\n```", "gsm8k", ["42"]),
        ("she has 1,234 eggs", "gsm8k", ["1234"]),
        ("答案是3\n答案是4", "gaokao-cloze", ["3"]),
        ("So the final answer is (B).", "sat", ["B"]),
    ],
)
def test_answers_are_extracted_as_by_the_harness(output: str, task: str, answers: list[str]) -> None:
    assert extract(output, task) == answers


def test_the_next_question_of_a_base_model_is_cut_off() -> None:
    assert extract("It is 5.\n\nQ: What is 2+2? 4", "gsm8k", is_few_shot=True) == ["5."]


def test_answers_are_rewritten_as_by_the_harness() -> None:
    rewritten = {
        r"\dfrac12": r"\frac{1}{2}",
        "1/2": r"\frac{1}{2}",
        r"90^\circ": "90",
        r"12\text{ cm}": "12",
        ".5": "0.5",
        r"\sqrt3": r"\sqrt{3}",
        "18.00": "18",
        r"\$5": "5",
    }
    assert {text: rewrite(text) for text in rewritten} == rewritten
