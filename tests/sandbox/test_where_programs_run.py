"""Only the sandbox runs text as a program. The tests read the source of the whole package."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "megatron_dsmath"
# Functions that run text as Python, or run what bytes select.
RUNS_TEXT = {"eval", "exec", "compile", "__import__", "sympify", "parse_expr", "parse_latex", "runcode", "literal_eval"}
RUNS_BYTES = {("pickle", "load"), ("pickle", "loads"), ("pickle", "Unpickler"), ("marshal", "loads"), ("os", "system")}
ALLOWED = {
    "sandbox/fork_server.py": {"exec", "compile"},  # the sandbox itself
    "evaluation/code_tests_inside.py": {"exec", "compile"},  # in the sandbox: a program, then its tests
    "grading/symbolic.py": {"parse_latex", "parse_expr"},  # in the sandbox: formulas
    "parallel/shard_reader.py": {"pickle.Unpickler"},  # with a list of the classes it may load
}


def calls(source: str) -> Iterator[str]:
    """The functions of RUNS_TEXT and RUNS_BYTES that a source names, called or not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id in RUNS_TEXT:
            yield node.id
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if (owner, node.attr) in RUNS_BYTES:
                yield f"{owner}.{node.attr}"
            elif node.attr in RUNS_TEXT and (owner == "builtins" or not hasattr(builtins, node.attr)):
                yield node.attr  # not re.compile or a model's eval()
        elif isinstance(node, ast.keyword) and node.arg == "shell":
            yield "shell"


def test_only_the_sandbox_runs_text() -> None:
    found = {path.relative_to(PACKAGE).as_posix(): set(calls(path.read_text())) for path in PACKAGE.rglob("*.py")}
    assert {file: names for file, names in found.items() if names - ALLOWED.get(file, set())} == {}


def test_only_the_sandbox_and_the_proof_checker_start_processes() -> None:
    """The proof checker is the user's program. It reads a proof as JSON from standard input."""
    starting = {
        path.relative_to(PACKAGE).as_posix()
        for room in ("evaluation", "grading", "sandbox")
        for path in (PACKAGE / room).rglob("*.py")
        if {"subprocess", "multiprocessing", "pty"} & set(imported(path.read_text()))
    }
    assert starting == {"sandbox/pool.py", "evaluation/proofs.py"}


def imported(source: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module).partition(".")[0]


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("eval(text)", ["eval"]),
        ("run = exec", ["exec"]),
        ("builtins.eval(text)", ["eval"]),
        ("import pickle\npickle.loads(data)", ["pickle.loads"]),
        ("sympy.sympify(answer)", ["sympify"]),
        ("subprocess.run(command, shell=True)", ["shell"]),
        ("re.compile(pattern)\nmodel.eval()\nevaluate(text)", []),
    ],
)
def test_calls_finds_the_functions_that_run_text(source: str, names: list[str]) -> None:
    assert list(calls(source)) == names
