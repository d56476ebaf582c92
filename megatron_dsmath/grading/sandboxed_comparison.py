"""Questions for sympy, asked in the sandbox: many to a process where they are quick, alone where one is not."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

from megatron_dsmath.errors import DependencyError
from megatron_dsmath.sandbox.outcome import Limits, Outcome
from megatron_dsmath.sandbox.pool import Sandbox

Note = Literal["", "no answer", "timeout", "error"]

_INSIDE = "megatron_dsmath.grading.symbolic"
_PROGRAM = f"from {_INSIDE} import main\nmain()\n"
_ANSWERS = {"true": True, "false": False}
_BATCH = 64
_SPARE_SECONDS = 0.25  # for each of a batch: most take some 10 ms
_WALL_FACTOR = 3.0  # seconds that may pass for each of the processor's, on a machine that does other things too
_MEMORY_MIB = 512
_OUT_OF_TIME = "ended by SIGPROF"


class Comparison(NamedTuple):
    """One comparison: everything it depends on, so that the same is asked once."""

    protocol: Literal["strict", "paper"]
    reference: str
    answer: str
    task: str | None


class ComparisonResult(NamedTuple):
    """Whether the answer is the reference; where nobody could tell, it is not, and the note says why."""

    is_correct: bool
    note: Note = ""


_LATE = ComparisonResult(False, "timeout")


class ComparisonSandbox:
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

    def ask(self, questions: Sequence[Comparison]) -> dict[Comparison, ComparisonResult]:
        """A reply to each question. One that hangs takes its own timeout; one that ends its process is asked alone."""
        replies: dict[Comparison, ComparisonResult] = {}
        batches = list(_batches(questions))
        while batches:
            again: list[list[Comparison]] = []
            for batch, outcome in self._run(batches):
                found = _replies(batch, outcome)
                replies |= zip(batch, found, strict=False)
                left = batch[len(found) :]
                suspects = 0 if found[-1:] == [_LATE] else 1 if found else len(left)
                again += [[question] for question in left[:suspects]]
                again += [left[suspects:]] if left[suspects:] else []
            batches = again
        return replies

    def _run(self, batches: list[list[Comparison]]) -> Iterator[tuple[list[Comparison], Outcome]]:
        seconds = self._timeout_seconds
        asked = ([question._asdict() for question in batch] for batch in batches)
        programs = ((_PROGRAM, json.dumps({"timeout_seconds": seconds, "questions": batch})) for batch in asked)
        longest = _WALL_FACTOR * seconds + _SPARE_SECONDS * max(map(len, batches))
        limits = Limits(timeout_seconds=longest, memory_mib=_MEMORY_MIB)
        return zip(batches, self._sandbox.run_all(programs, limits), strict=True)


def _replies(batch: Sequence[Comparison], outcome: Outcome) -> list[ComparisonResult]:
    """Those to the first questions of a batch: what it printed, a line each, and of the one that used up its time.

    None where it printed anything else: then nothing of it is believed. A question alone always has its reply.
    """
    lines = outcome.stdout.splitlines()
    is_ours = len(lines) <= len(batch) and all(line in _ANSWERS for line in lines)
    replies = [ComparisonResult(_ANSWERS[line]) for line in lines] if is_ours else []
    if len(replies) < len(batch) and is_ours and outcome.error == _OUT_OF_TIME:
        return [*replies, _LATE]
    if len(replies) < len(batch) == 1:
        return [_LATE if outcome.verdict == "timeout" else ComparisonResult(False, "error")]
    return replies


def _batches(questions: Sequence[Comparison]) -> Iterator[list[Comparison]]:
    """Of one protocol each: what the paper's parser may evaluate shall not stand beside our own verdicts."""
    for protocol in ("strict", "paper"):
        asked = [question for question in questions if question.protocol == protocol]
        yield from (asked[start : start + _BATCH] for start in range(0, len(asked), _BATCH))
