"""Text is run as a program in the sandbox and nowhere else: read off the source of the whole package."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "megatron_dsmath"
# What runs text as Python, or lets bytes choose what is run.
RUNS_TEXT = {"eval", "exec", "compile", "__import__", "sympify", "parse_expr", "parse_latex", "runcode", "literal_eval"}
RUNS_BYTES = {("pickle", "load"), ("pickle", "loads"), ("pickle", "Unpickler"), ("marshal", "loads"), ("os", "system")}
ALLOWED = {
    "sandbox/fork_server.py": {"exec", "compile"},  # the sandbox itself
    "evaluation/code_tests_inside.py": {"exec", "compile"},  # inside it: a program, then its tests
    "grading/symbolic.py": {"parse_latex", "parse_expr"},  # inside it: formulas
    "parallel/shard_reader.py": {"pickle.Unpickler"},  # with a list of what it may name
}


def calls(source: str) -> Iterator[str]:
    """The names in a source that run text, and those that let bytes choose what is run, called or only named."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id in RUNS_TEXT:
            yield node.id
        elif isinstance(node, ast.Attribute):
            owner = node.value.id if isinstance(node.value, ast.Name) else ""
            if (owner, node.attr) in RUNS_BYTES:
                yield f"{owner}.{node.attr}"
            elif node.attr in RUNS_TEXT and (owner == "builtins" or not hasattr(builtins, node.attr)):
                yield node.attr  # re.compile and a model's eval() are others
        elif isinstance(node, ast.keyword) and node.arg == "shell":
            yield "shell"


def test_only_the_sandbox_runs_text() -> None:
    found = {path.relative_to(PACKAGE).as_posix(): set(calls(path.read_text())) for path in PACKAGE.rglob("*.py")}
    assert {file: names for file, names in found.items() if names - ALLOWED.get(file, set())} == {}


def test_evaluation_starts_processes_in_two_places() -> None:
    """The sandbox's interpreters; and the user's checker, which is handed a proof as JSON on standard input."""
    starting = {
        path.relative_to(PACKAGE).as_posix()
        for path in (PACKAGE / "evaluation").rglob("*.py")
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
def test_the_reader_sees_what_runs_text(source: str, names: list[str]) -> None:
    assert list(calls(source)) == names
