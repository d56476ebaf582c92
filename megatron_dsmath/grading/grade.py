"""Two verdicts on each output: ours, and the paper's. What text and numbers do not decide, the sandbox does."""

from __future__ import annotations

import re
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple

from megatron_dsmath.grading import extraction, paper_verdict, strict
from megatron_dsmath.grading.sandboxed_comparison import Comparison, ComparisonResult, ComparisonSandbox, Note

TIMEOUT_SECONDS = 5.0
_TASKS = ("gsm8k", "mgsm-zh", "cmath", "ocw", "sat", "mmlu-stem", "gaokao-cloze", "gaokao-mathqa", "math")
_SPELLINGS = {"mathcloze": "gaokao-cloze", "math-cloze": "gaokao-cloze", "mathqa": "gaokao-mathqa", "mmlu": "mmlu-stem"}


class Attempt(NamedTuple):
    """A model's whole output for a problem, the reference answer (or solution), and the task it is graded as."""

    prediction: str
    reference: str
    task: str | None = None
    is_few_shot: bool = False
    """Whether the paper's protocol cuts the output where a base model goes on with a next question."""


class Verdict(NamedTuple):
    """What an attempt is worth."""

    correct: bool
    extracted: str | None
    """The final answer; None where the output gives none."""
    correct_as_the_paper: bool
    extracted_as_the_paper: str
    note: Note = ""
    """Why it is not correct, where that is not simply a wrong answer: our own comparison did not end, or failed."""


class Grader:
    """Grades attempts; a context manager, whose sandbox starts when it is first needed.

    Raises DependencyError without math-verify, and SandboxError where nothing can be confined, once either is needed.
    """

    def __init__(self, workers: int | None = None, timeout_seconds: float = TIMEOUT_SECONDS) -> None:
        self._workers, self._timeout_seconds = workers, timeout_seconds
        self._judge: ComparisonSandbox | None = None

    def __enter__(self) -> Grader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._judge is not None:
            self._judge.close()

    def grade(self, attempts: Iterable[Attempt]) -> list[Verdict]:
        """A verdict for each attempt, in their order."""
        pairs = [_questions(attempt) for attempt in attempts]
        replies: dict[Comparison | None, ComparisonResult] = {None: ComparisonResult(False, "no answer")}
        undecided = []
        for question in dict.fromkeys(question for pair in pairs for question in pair if question is not None):
            try:
                replies[question] = ComparisonResult(is_correct(question, _raise_undecided, _raise_undecided))
            except _UndecidedError:
                undecided.append(question)
        if undecided:
            self._judge = self._judge or ComparisonSandbox(self._workers, self._timeout_seconds)
            for question, reply in self._judge.ask(undecided).items():
                replies[question] = reply
        return [
            Verdict(
                replies[ours].is_correct,
                None if ours is None else ours.answer,
                replies[theirs].is_correct,
                theirs.answer.replace("\n", "; "),
                replies[ours].note,
            )
            for ours, theirs in pairs
        ]


def is_correct(question: Comparison, by_math_verify: strict.Symbolic, by_sympy: strict.Symbolic) -> bool:
    """The verdict, given what compares formulas: `inside` has both, the trusted process neither."""
    if question.protocol == "paper":
        return paper_verdict.is_correct(question.reference, question.answer, question.task, by_sympy)
    if question.task in extraction.CHOICE_TASKS:
        return re.findall("[A-J]", question.answer) == sorted(set(re.findall("[A-J]", question.reference)))
    return strict.is_correct(question.reference, question.answer, by_math_verify)


def task_named(name: str | None) -> str | None:
    """The task a name means, however spelt (`mgsm_zh`, `gsm8k-test`, `agieval-gaokao-mathqa`); None for others."""
    plain = re.sub(r"[_\s]", "-", name or "").lower()
    for spelling, task in (*_SPELLINGS.items(), *((task, task) for task in _TASKS)):
        if spelling in plain:
            return task
    return None


def reference_of(answer: str) -> str:
    """The final answer of a reference that is a whole solution, as GSM8K's and MATH's rows have it."""
    if "####" in answer:
        return answer.rpartition("####")[2].strip()
    if "\\boxed" in answer:
        return extraction.extract(answer) or answer
    return answer.strip()


class _UndecidedError(Exception):
    """Text and numbers do not say; sympy must, and only the sandbox runs that."""


def _raise_undecided(reference: str, answer: str) -> bool:
    raise _UndecidedError


def _questions(attempt: Attempt) -> tuple[Comparison | None, Comparison]:
    task = task_named(attempt.task)
    reference = reference_of(attempt.reference)
    extracted = extraction.extract(attempt.prediction, task)
    found = "\n".join(paper_verdict.extract(attempt.prediction, task, attempt.is_few_shot))
    ours = None if extracted is None else Comparison("strict", reference, extracted, task)
    return ours, Comparison("paper", reference, found, task)
