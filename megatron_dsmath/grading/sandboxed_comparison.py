"""Compare answers with sympy and math-verify in the sandbox, many comparisons per process."""

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
_LINES = {"true": True, "false": False}
_BATCH = 64  # comparisons per process
_SPARE_SECONDS = 0.25  # wall time for each comparison of a batch; most take about 10 ms
_WALL_FACTOR = 3.0  # wall time per CPU time: the machine may be busy
_MEMORY_MIB = 512
_CPU_TIMEOUT = "ended by SIGPROF"


class Comparison(NamedTuple):
    """An answer to compare with a reference. Holds everything the result depends on, so equal ones run once."""

    protocol: Literal["strict", "paper"]
    reference: str
    answer: str
    task: str | None


class ComparisonResult(NamedTuple):
    """Whether the answer is correct. If the comparison did not end, it is not, and the note gives the reason."""

    is_correct: bool
    note: Note = ""


_TIMEOUT = ComparisonResult(False, "timeout")


def start_sandbox(workers: int | None) -> Sandbox:
    """A sandbox with sympy and math-verify. Raises DependencyError if they are missing, and SandboxError."""
    if importlib.util.find_spec("math_verify") is None:
        raise DependencyError(
            "math-verify, which compares formulas, is not installed",
            where="grading",
            expected="math-verify",
            fix="pip install 'megatron_dsmath[evaluation]'",
        )
    return Sandbox(workers, modules=(_INSIDE,))


def compare(
    comparisons: Sequence[Comparison], sandbox: Sandbox, timeout_seconds: float
) -> dict[Comparison, ComparisonResult]:
    """The result of each comparison. One that hangs uses up only its own timeout."""
    results: dict[Comparison, ComparisonResult] = {}
    batches = list(_batches(comparisons))
    while batches:
        again: list[list[Comparison]] = []
        for batch, outcome in zip(batches, _run(batches, sandbox, timeout_seconds), strict=True):
            found = _read_results(batch, outcome)
            results |= zip(batch, found, strict=False)
            left = batch[len(found) :]
            # A process that ended for another reason than a timeout: the comparison it ended in runs alone.
            alone = 0 if found[-1:] == [_TIMEOUT] else 1 if found else len(left)
            again += [[comparison] for comparison in left[:alone]]
            again += [left[alone:]] if left[alone:] else []
        batches = again
    return results


def _run(batches: list[list[Comparison]], sandbox: Sandbox, seconds: float) -> Iterator[Outcome]:
    rows = ([comparison._asdict() for comparison in batch] for batch in batches)
    programs = ((_PROGRAM, json.dumps({"timeout_seconds": seconds, "comparisons": batch})) for batch in rows)
    longest = _WALL_FACTOR * seconds + _SPARE_SECONDS * max(map(len, batches))
    return sandbox.run_all(programs, Limits(timeout_seconds=longest, memory_mib=_MEMORY_MIB))


def _read_results(batch: Sequence[Comparison], outcome: Outcome) -> list[ComparisonResult]:
    """The results of the first comparisons of a batch: one per printed line, and a timeout for the one that hung.

    If the process printed anything else, none of its output is used. A comparison alone always has a result.
    """
    lines = outcome.stdout.splitlines()
    is_valid = len(lines) <= len(batch) and all(line in _LINES for line in lines)
    results = [ComparisonResult(_LINES[line]) for line in lines] if is_valid else []
    if len(results) < len(batch) and is_valid and outcome.error == _CPU_TIMEOUT:
        return [*results, _TIMEOUT]
    if len(results) < len(batch) == 1:
        return [_TIMEOUT if outcome.verdict == "timeout" else ComparisonResult(False, "error")]
    return results


def _batches(comparisons: Sequence[Comparison]) -> Iterator[list[Comparison]]:
    """Batches of one protocol each: the paper's parser may evaluate text, so our comparisons run in other processes."""
    for protocol in ("strict", "paper"):
        selected = [comparison for comparison in comparisons if comparison.protocol == protocol]
        yield from (selected[start : start + _BATCH] for start in range(0, len(selected), _BATCH))
