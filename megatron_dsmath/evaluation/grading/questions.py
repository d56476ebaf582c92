"""Questions for sympy, asked in the sandbox: many to a process where they are quick, alone where one is not."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from megatron_dsmath.errors import DependencyError
from megatron_dsmath.evaluation.sandbox.outcome import Limits, Outcome
from megatron_dsmath.evaluation.sandbox.pool import Sandbox

Note = Literal["", "no answer", "timeout", "error"]

_INSIDE = "megatron_dsmath.evaluation.grading.inside"
_PROGRAM = f"from {_INSIDE} import main\nmain()\n"
_ANSWER = re.compile(r"(true|false) ([0-9]{1,4}\.[0-9]{3})")
_BATCH = 16
_SPARE_SECONDS = 1.0  # for the others of a batch, which take some 20 ms each
_MEMORY_MIB = 512


class Question(NamedTuple):
    """One comparison: everything it depends on, so that the same is asked once."""

    protocol: Literal["strict", "paper"]
    reference: str
    answer: str
    task: str | None


class Reply(NamedTuple):
    """Whether the answer is the reference; where nobody could tell, it is not, and the note says why."""

    is_right: bool
    note: Note = ""


class Judge:
    """The sandbox with sympy and math-verify in it. Raises DependencyError without them, and SandboxError."""

    def __init__(self, workers: int | None, timeout_seconds: float) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise DependencyError(
                "formulas are compared with math-verify, which is not installed",
                where="grading",
                expected="math-verify",
                fix="pip install 'megatron_dsmath[evaluation]'",
            )
        self._sandbox = Sandbox(workers, modules=(_INSIDE,))
        self._timeout_seconds = timeout_seconds

    def close(self) -> None:
        """End the interpreters."""
        self._sandbox.close()

    def ask(self, questions: Sequence[Question]) -> dict[Question, Reply]:
        """A reply to each question. One that hangs takes its own timeout; one that kills its process is asked alone."""
        replies: dict[Question, Reply] = {}
        for batch, outcome in self._run(list(_batches(questions)), self._timeout_seconds + _SPARE_SECONDS):
            replies |= self._replies(batch, outcome)
        alone = [[question] for question in questions if question not in replies]
        for (question,), outcome in self._run(alone, self._timeout_seconds):
            note: Note = "timeout" if outcome.verdict == "timeout" else "error"
            replies[question] = self._replies([question], outcome).get(question, Reply(False, note))
        return replies

    def _run(self, batches: list[list[Question]], seconds: float) -> Iterator[tuple[list[Question], Outcome]]:
        programs = ((_PROGRAM, json.dumps([question._asdict() for question in batch])) for batch in batches)
        limits = Limits(timeout_seconds=seconds, memory_mib=_MEMORY_MIB)
        return zip(batches, self._sandbox.run_all(programs, limits), strict=True)

    def _replies(self, batch: list[Question], outcome: Outcome) -> dict[Question, Reply]:
        """What a batch answered: a line each, `true` or `false` and the seconds it took."""
        lines = outcome.stdout.splitlines()
        answers = [_ANSWER.fullmatch(line) for line in lines]
        if len(answers) > len(batch) or not all(answers):  # nothing of ours: each is asked alone
            return {}
        found = [(answer[1] == "true", float(answer[2])) for answer in answers if answer]
        replies = {question: Reply(is_right) for question, (is_right, _) in zip(batch, found, strict=False)}
        left_seconds = outcome.seconds - sum(seconds for _, seconds in found)
        if outcome.verdict == "timeout" and len(lines) < len(batch) and left_seconds >= self._timeout_seconds:
            replies[batch[len(lines)]] = Reply(False, "timeout")
        return replies


def _batches(questions: Sequence[Question]) -> Iterator[list[Question]]:
    """Of one protocol each: what the paper's parser may evaluate shall not stand beside our own verdicts."""
    for protocol in ("strict", "paper"):
        asked = [question for question in questions if question.protocol == protocol]
        yield from (asked[start : start + _BATCH] for start in range(0, len(asked), _BATCH))
