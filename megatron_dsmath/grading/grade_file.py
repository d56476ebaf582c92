"""`dsmath grade`: grade a file of outputs and write a file of verdicts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_dsmath.errors import DataError, UsageError
from megatron_dsmath.files.atomic_files import AtomicFiles
from megatron_dsmath.files.lines import Line, LineReader
from megatron_dsmath.grading.grade import Attempt, Grader, Verdict


def grade_file(file: Path, out: Path | None = None) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Grade the rows of `file` (JSONL with `prediction`, `answer` and optionally `task`); write the verdicts to `out`.

    Returns the verdicts, one row per output, and their totals. Raises DataError with the line of an invalid row, and
    UsageError if `out` is `file`.
    """
    if out is not None and out.resolve() == file.resolve():
        raise UsageError("the verdicts would overwrite the outputs", where="--out", found=out, expected="another file")
    with LineReader(file) as lines:
        entries = [_entry(file, line) for line in lines]
    with Grader() as grader:
        verdicts = grader.grade(_attempt(file, number, entry) for number, entry in enumerate(entries, 1))
    rows = [
        {"line": number, **({"id": entry["id"]} if "id" in entry else {}), **verdict._asdict()}
        for number, (entry, verdict) in enumerate(zip(entries, verdicts, strict=True), 1)
    ]
    if out is not None:
        with AtomicFiles(out) as (output,):
            for row in rows:
                output.write(json.dumps(row, ensure_ascii=False).encode("utf-8", "surrogatepass") + b"\n")
    return rows, _summary(verdicts)


def _summary(verdicts: list[Verdict]) -> dict[str, Any]:
    count = len(verdicts)
    correct = sum(verdict.correct for verdict in verdicts)
    as_the_paper = sum(verdict.correct_as_the_paper for verdict in verdicts)
    return {
        "rows": count,
        "correct": correct,
        "accuracy": correct / count,
        "correct_as_the_paper": as_the_paper,
        "accuracy_as_the_paper": as_the_paper / count,
        "disagreements": [
            line for line, verdict in enumerate(verdicts, 1) if verdict.correct != verdict.correct_as_the_paper
        ],
        "no_answer": sum(verdict.note == "no answer" for verdict in verdicts),
        "timeouts": sum(verdict.note == "timeout" for verdict in verdicts),
        "errors": sum(verdict.note == "error" for verdict in verdicts),
    }


def _entry(file: Path, line: Line) -> dict[str, Any]:
    where = f"{file}:{line.number}"
    try:
        entry = json.loads(line.content)
    except (ValueError, RecursionError) as error:
        raise DataError("the line is not JSON", where=where, found=error, expected="one JSON object") from None
    if not isinstance(entry, dict):
        raise DataError("the line is not a JSON object", where=where, expected="an object")
    return entry


def _attempt(file: Path, number: int, entry: dict[str, Any]) -> Attempt:
    task = entry.get("task")
    if task is not None and not isinstance(task, str):
        _raise_unusable("task", task, file, number, "the name of a benchmark, such as gsm8k")
    if not isinstance(entry.get("prediction"), str):
        _raise_unusable("prediction", entry.get("prediction"), file, number, "a model's complete output, a string")
    answer = entry.get("answer")
    if isinstance(answer, bool) or not isinstance(answer, str | int | float) or not str(answer).strip():
        _raise_unusable("answer", answer, file, number, "the reference answer, a string or a number")
    return Attempt(entry["prediction"], str(answer), task)


def _raise_unusable(field: str, found: object, file: Path, number: int, expected: str) -> None:
    shown = "nothing" if found is None else repr(found)[:80]
    raise DataError(f"the row has no valid {field!r}", where=f"{file}:{number}", found=shown, expected=expected)
