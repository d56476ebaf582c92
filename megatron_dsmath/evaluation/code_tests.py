"""Run programs with a benchmark's tests in the sandbox."""

from __future__ import annotations

import json
import secrets
from collections.abc import Sequence
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


class CodeTestResult(NamedTuple):
    """The result of a program and its tests."""

    passed: bool
    """Every test ran and passed: the statement after the last test was reached."""
    passed_as_the_paper: bool
    """The same, with imports that DeepSeek-Coder's harness adds to the program."""
    outcome: Outcome
    """The outcome without these imports."""


def open_test_sandbox() -> Sandbox:
    """A sandbox that can run tests. Raises SandboxError if programs cannot be confined."""
    return Sandbox(modules=(*PRELOADED_MODULES, _INSIDE))


def run_code_tests(programs: Sequence[tuple[str, str]], sandbox: Sandbox, limits: Limits) -> list[CodeTestResult]:
    """Run (program, tests) pairs, several at once, each in its own process; results in order."""
    results = _run(programs, sandbox, limits)
    lacking = [index for index, (_, outcome) in enumerate(results) if outcome.error.startswith("NameError")]
    repeated = _run([(_IMPORTED + programs[index][0], programs[index][1]) for index in lacking], sandbox, limits)
    with_imports = {index: passed for index, (passed, _) in zip(lacking, repeated, strict=True)}
    return [
        CodeTestResult(passed, with_imports.get(index, passed), outcome)
        for index, (passed, outcome) in enumerate(results)
    ]


def _run(programs: Sequence[tuple[str, str]], sandbox: Sandbox, limits: Limits) -> list[tuple[bool, Outcome]]:
    tokens = [secrets.token_hex(16) for _ in programs]
    requests = (
        json.dumps({"program": program, "tests": tests, "token": token})
        for (program, tests), token in zip(programs, tokens, strict=True)
    )
    outcomes = sandbox.run_all(((_PROGRAM, request) for request in requests), limits)
    return [_result(*pair) for pair in zip(outcomes, tokens, strict=True)]


def _result(outcome: Outcome, token: str) -> tuple[bool, Outcome]:
    """Whether the tests passed, and the outcome without the token, which differs from run to run."""
    marked = f"\n{token}\n"
    passed = outcome.verdict == "ok" and marked in outcome.stdout
    outcome = outcome._replace(stdout=outcome.stdout.replace(marked, ""))
    if outcome.verdict == "ok" and not passed:
        outcome = outcome._replace(verdict="error", error="the program ended before its tests did")
    return passed, outcome
