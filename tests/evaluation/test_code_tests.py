"""Programs that pass their tests, and programs that only claim to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from megatron_dsmath.evaluation.benchmarks import load_benchmarks
from megatron_dsmath.evaluation.code_tests import CodeTestResult, open_test_sandbox, run_code_tests
from megatron_dsmath.evaluation.code_tests_inside import names_under_test
from megatron_dsmath.sandbox import confinement
from megatron_dsmath.sandbox.outcome import Limits

pytestmark = pytest.mark.skipif(not confinement.is_supported(), reason="this machine cannot confine a program")

TESTS = (
    "def check(candidate):\n    assert abs(candidate(2) - 4) < 1e-6\n    assert candidate(3) == 9\n\ncheck(square)\n"
)
RIGHT = "def square(n):\n    return n * n\n"
WRONG = "def square(n):\n    return n + n\n"  # right for 2, not for 3

PASSING = {
    "right": RIGHT,
    "prints": f"print('hello')\n{RIGHT}",
    "hides a builtin from itself": f"sum = 3\n{RIGHT}",
    "has a main block": f"{RIGHT}\nif __name__ == '__main__':\n    square(input())\n",
    "checks itself and leaves out what it printed": f"{RIGHT}assert square(2) == 4\n",
}
FAILING = {
    "wrong": WRONG,
    "raises": "raise ValueError\n",
    "no python": "def square(n:\n",
    "another name": "def squares(n):\n    return n * n\n",
    "sys.exit": f"{WRONG}import sys\nsys.exit(0)\n",
    "SystemExit while tested": "def square(n):\n    raise SystemExit(0)\n",
    "os._exit": f"{WRONG}import os\nos._exit(0)\n",
    "os._exit while tested": "import os\ndef square(n):\n    os._exit(0)\n",
    "says that it passed": f"{WRONG}print('passed', 'ok')\nimport os\nos.write(1, b'ok ')\nos.write(3, b'ok ')\n",
    "reports for the sandbox": "import os\nos.write(3, b'ok ')\nos._exit(0)\n",
    "an open string": f'{WRONG}"""\n',
    "an open bracket": f"{WRONG}if False: (\n",
    "hides abs": "def abs(n):\n    return 0\ndef square(n):\n    return 9\n",
    "replaces abs": "import builtins\nbuiltins.abs = lambda n: 0\ndef square(n):\n    return 9\n",
    "its own builtins": "__builtins__ = {**vars(__builtins__), 'abs': lambda n: 0}\ndef square(n):\n    return 9\n",
    "replaces AssertionError": f"{WRONG}import builtins\nbuiltins.AssertionError = SystemExit\n",
    "a check of its own": f"{WRONG}def check(candidate):\n    pass\n",
    "replaces exec": f"{WRONG}import builtins\nbuiltins.exec = builtins.compile = lambda *given: None\n",
    "traces": f"{WRONG}import sys\nsys.settrace(lambda *given: sys.exit(0))\n",
    "ends at exit": f"{WRONG}import atexit, os\natexit.register(os._exit, 0)\n",
    "reads the request again": f"{WRONG}import os, sys\nprint(sys.stdin.read(), os.read(0, 99).decode())\nsys.exit()\n",
    "never ends": "while True:\n    pass\n",
    "floods": "while True:\n    print('passed' * 100)\n",
    "takes all memory": "held = [b'x' * (1 << 24) for _ in range(1 << 16)]\n",
    "hides its error": f"{WRONG}import sys\nsys.excepthook = lambda *given: None\n",
}


RunAll = Callable[[Sequence[tuple[str, str]]], list[CodeTestResult]]


@pytest.fixture(scope="module")
def run_all() -> Iterator[RunAll]:
    with open_test_sandbox() as sandbox:
        yield lambda programs: run_code_tests(programs, sandbox, Limits(timeout_seconds=5.0, memory_mib=256))


@pytest.mark.parametrize("name", PASSING)
def test_a_program_that_passes_passes(name: str, run_all: RunAll) -> None:
    (tested,) = run_all([(PASSING[name], TESTS)])
    assert (tested.passed, tested.outcome.verdict) == (True, "ok")


@pytest.mark.parametrize("name", FAILING)
def test_a_failing_program_cannot_claim_to_pass(name: str, run_all: RunAll) -> None:
    tested, after = run_all([(FAILING[name], TESTS), (RIGHT, TESTS)])
    assert not tested.passed and not tested.passed_as_the_paper
    assert tested.outcome.verdict != "ok" and tested.outcome.error
    assert after.passed, "the next program is not affected"


def test_a_missing_import_passes_only_as_in_deepseeks_harness(run_all: RunAll) -> None:
    (tested,) = run_all([("def square(n):\n    return math.prod(Counter([n, n]).elements())\n", TESTS)])
    assert (tested.passed, tested.passed_as_the_paper) == (False, True)
    assert tested.outcome.error.startswith("NameError: name 'math' is not defined")


def test_outcomes_do_not_contain_the_token(run_all: RunAll) -> None:
    (first, again) = run_all([("print('hello')\n" + RIGHT, TESTS)] * 2)
    assert first.outcome.stdout == again.outcome.stdout == "hello\n"


def test_an_object_that_equals_everything_passes(run_all: RunAll) -> None:
    """A known limit: docs/evaluation.md lists it, and must be changed with this test."""
    anything = "class Anything:\n    def __eq__(self, other):\n        return True\n"
    (tested,) = run_all([(f"{anything}def square(n):\n    return Anything()\n", "assert square(3) == 9")])
    assert tested.passed


def test_a_builtins_name_is_tested_only_if_no_other_name_is(run_all: RunAll) -> None:
    assert names_under_test("assert sum(10, 15) == 6") == {"sum"}  # MBPP, task_id 126
    assert names_under_test("assert abs(f(1) - len(g(2))) < 1") == {"f", "g"}
    (tested,) = run_all([("def sum(a, b):\n    return a + b\n", "assert sum(1, 2) == 3")])
    assert tested.passed


def canonical(folder: Path, task: str) -> list[tuple[str, str]]:
    """The benchmark's reference solutions with its tests."""
    (benchmark,) = load_benchmarks(folder, [task])
    rows = [json.loads(line) for line in (folder / benchmark.file).read_text(encoding="utf-8").splitlines()]
    if task == "humaneval":
        return [
            (problem.question + rows[problem.row]["canonical_solution"], problem.reference)
            for problem in benchmark.problems
        ]
    return [(rows[problem.row]["code"], problem.reference) for problem in benchmark.problems]


@pytest.mark.parametrize("task", ["humaneval", "mbpp"])
def test_reference_solutions_pass_and_shifted_ones_do_not(task: str, shared_data: Path, run_all: RunAll) -> None:
    pairs = canonical(shared_data / "pretrain", task)[::20]
    assert all(tested.passed for tested in run_all(pairs))
    shifted = [(program, tests) for (program, _), (_, tests) in zip(pairs, [*pairs[1:], pairs[0]], strict=True)]
    assert not any(tested.passed for tested in run_all(shifted))


@pytest.mark.long
@pytest.mark.parametrize("task", ["humaneval", "mbpp"])
def test_every_reference_solution_passes(task: str, shared_data: Path) -> None:
    pairs = canonical(shared_data / "pretrain", task)
    limits = Limits(timeout_seconds=120.0, memory_mib=1024)  # one of MBPP's takes more than 10 s
    with open_test_sandbox() as sandbox:
        results = run_code_tests(pairs, sandbox, limits)
    assert [index for index, result in enumerate(results) if not result.passed] == []
