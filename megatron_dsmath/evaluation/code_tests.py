"""Programs with tests: whether all of a benchmark's tests pass, in the sandbox."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
from types import TracebackType
from typing import NamedTuple

from megatron_dsmath.sandbox.outcome import Limits, Outcome
from megatron_dsmath.sandbox.pool import PRELOADED_MODULES, Sandbox

_INSIDE = "megatron_dsmath.evaluation.code_tests_inside"
_PROGRAM = f"from {_INSIDE} import main\nmain()\n"
# What DeepSeek-Coder's harness imports for every program (Evaluation/HumanEval/human_eval/evaluation.py).
_IMPORTED = (
    "import math, re, sys, copy, datetime, itertools, collections, heapq, functools, hashlib, numpy, string\n"
    "import numpy as np\nfrom typing import *\nfrom collections import *\n"
)


class Tested(NamedTuple):
    """How a program and its tests ended."""

    passed: bool
    """Every test ran, and none failed: what follows the last one was reached."""
    passed_as_the_paper: bool
    """The same, with what the program forgot to import."""
    outcome: Outcome
    """Of the program as it is."""


class CodeTests:
    """The sandbox with what runs tests in it; a context manager. Raises SandboxError where nothing can be confined."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sandbox = Sandbox(modules=(*PRELOADED_MODULES, _INSIDE))

    def __enter__(self) -> CodeTests:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._sandbox.close()

    def run_all(self, programs: Sequence[tuple[str, str]]) -> list[Tested]:
        """Run (program, tests) pairs, several at once, each alone in its process; in their order."""
        as_they_are = self._run(programs)
        lacking = [place for place, (_, outcome) in enumerate(as_they_are) if outcome.error.startswith("NameError")]
        again = self._run([(_IMPORTED + programs[place][0], programs[place][1]) for place in lacking])
        imported = {place: passed for place, (passed, _) in zip(lacking, again, strict=True)}
        return [
            Tested(passed, imported.get(place, passed), outcome) for place, (passed, outcome) in enumerate(as_they_are)
        ]

    def _run(self, programs: Sequence[tuple[str, str]]) -> list[tuple[bool, Outcome]]:
        tokens = [secrets.token_hex(16) for _ in programs]
        requests = (
            json.dumps({"program": program, "tests": tests, "token": token})
            for (program, tests), token in zip(programs, tokens, strict=True)
        )
        outcomes = self._sandbox.run_all(((_PROGRAM, request) for request in requests), self._limits)
        return [_verdict(*pair) for pair in zip(outcomes, tokens, strict=True)]


def _verdict(outcome: Outcome, token: str) -> tuple[bool, Outcome]:
    """Whether the tests passed, and the outcome without the token: that is another one each time, and rows are not."""
    marked = f"\n{token}\n"
    passed = outcome.verdict == "ok" and marked in outcome.stdout
    outcome = outcome._replace(stdout=outcome.stdout.replace(marked, ""))
    if outcome.verdict == "ok" and not passed:
        outcome = outcome._replace(verdict="error", error="the program ended before its tests did")
    return passed, outcome
