"""Grade outputs with our verdict and the paper's. Comparisons that need sympy run in the sandbox."""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import ExitStack
from typing import NamedTuple

from megatron_dsmath.grading import extraction, paper_verdict, strict
from megatron_dsmath.grading.sandboxed_comparison import Comparison, ComparisonResult, Note, compare, start_sandbox
from megatron_dsmath.grading.strict import TextComparison
from megatron_dsmath.sandbox.pool import Sandbox

_TASKS = ("gsm8k", "mgsm-zh", "cmath", "ocw", "sat", "mmlu-stem", "gaokao-cloze", "gaokao-mathqa", "math")
_SPELLINGS = {"mathcloze": "gaokao-cloze", "math-cloze": "gaokao-cloze", "mathqa": "gaokao-mathqa", "mmlu": "mmlu-stem"}
_SPELLINGS |= {task: task for task in _TASKS}


class Attempt(NamedTuple):
    """A model's complete output for a problem, the reference answer or solution, and the task."""

    prediction: str
    reference: str
    task: str | None = None
    is_few_shot: bool = False  # the paper's protocol cuts the output where a base model starts another question


class Verdict(NamedTuple):
    """Our verdict on an attempt and the paper's."""

    correct: bool
    extracted: str | None  # the final answer; None if the output has none
    correct_as_the_paper: bool
    extracted_as_the_paper: str
    note: Note = ""  # why our verdict has no comparison: there is no answer, or the comparison timed out or failed


class Grader:
    """Grades attempts; a context manager that starts its sandbox, as `start_sandbox`, when it is first needed."""

    def __init__(self, workers: int | None = None, timeout_seconds: float = 5.0) -> None:
        self._workers, self._timeout_seconds = workers, timeout_seconds
        self._stack = ExitStack()
        self._sandbox: Sandbox | None = None

    def __enter__(self) -> Grader:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def grade(self, attempts: Iterable[Attempt]) -> list[Verdict]:
        """The verdict on each attempt, in the same order."""
        pairs = [_comparisons_of(attempt) for attempt in attempts]
        results: dict[Comparison | None, ComparisonResult] = {None: ComparisonResult(False, "no answer")}
        undecided = []
        for comparison in dict.fromkeys(one for pair in pairs for one in pair if one is not None):
            try:
                results[comparison] = ComparisonResult(is_correct(comparison, _raise_undecided, _raise_undecided))
            except _UndecidedError:
                undecided.append(comparison)
        if undecided:
            self._sandbox = self._sandbox or self._stack.enter_context(start_sandbox(self._workers))
            results |= compare(undecided, self._sandbox, self._timeout_seconds).items()
        return [
            Verdict(
                results[ours].is_correct,
                ours.answer if ours else None,
                results[paper].is_correct,
                paper.answer.replace("\n", "; "),
                results[ours].note,
            )
            for ours, paper in pairs
        ]


def is_correct(comparison: Comparison, by_math_verify: TextComparison, by_sympy: TextComparison) -> bool:
    """Whether the answer is correct. The two functions compare formulas; they are only available in the sandbox."""
    if comparison.protocol == "paper":
        return paper_verdict.is_correct(comparison.reference, comparison.answer, comparison.task, by_sympy)
    if comparison.task in extraction.CHOICE_TASKS:
        return re.findall("[A-J]", comparison.answer) == sorted(set(re.findall("[A-J]", comparison.reference)))
    return strict.is_correct(comparison.reference, comparison.answer, by_math_verify)


def task_named(name: str | None) -> str | None:
    """The task of a name such as `mgsm_zh`, `gsm8k-test` or `agieval-gaokao-mathqa`; None if it is unknown."""
    plain = re.sub(r"[_\s]", "-", name or "").lower()
    return next((task for spelling, task in _SPELLINGS.items() if spelling in plain), None)


def reference_of(answer: str) -> str:
    """The final answer in a reference, which may be a complete solution as in the rows of GSM8K and MATH."""
    if "####" in answer:
        return answer.rpartition("####")[2].strip()
    if "\\boxed" in answer:
        return extraction.extract(answer) or answer
    return answer.strip()


class _UndecidedError(Exception):
    """Text and numbers do not decide; sympy must compare, which only runs in the sandbox."""


def _raise_undecided(reference: str, answer: str) -> bool:
    raise _UndecidedError


def _comparisons_of(attempt: Attempt) -> tuple[Comparison | None, Comparison]:
    task = task_named(attempt.task)
    reference = reference_of(attempt.reference)
    extracted = extraction.extract(attempt.prediction, task)
    found = "\n".join(paper_verdict.extract(attempt.prediction, task, attempt.is_few_shot))
    ours = None if extracted is None else Comparison("strict", reference, extracted, task)
    return ours, Comparison("paper", reference, found, task)
