"""Load problems from the published benchmarks' files (`published`) or from custom files. No row is dropped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from megatron_dsmath.data.sft.conversation import Message, detect_language
from megatron_dsmath.errors import DataError, UsageError
from megatron_dsmath.evaluation.published import PUBLISHED, Kind

CUSTOM_SUFFIX = ".jsonl"
_KIND_OF_KEY: dict[str, Kind] = {"answer": "answer", "tests": "tests", "statement": "proof"}
"""The key beside `question` in a custom row decides how its outputs are graded."""


class Problem(NamedTuple):
    """A question and its reference."""

    task: str
    row: int
    """The row of the file, from 0."""
    question: str
    reference: str
    """The answer or a solution that ends with it; the tests; the statement to prove, with the theory's header."""
    language: str
    level: str | None = None
    subject: str | None = None
    kind: Kind = "answer"


class Benchmark(NamedTuple):
    """The problems of a task and the file they come from."""

    task: str
    file: str
    sha256: str
    rows: int
    """Rows of the file; `problems` are fewer if not all rows are problems, or with a limit."""
    problems: tuple[Problem, ...]


def load_benchmarks(folder: Path, tasks: Sequence[str], limit: int | None = None) -> list[Benchmark]:
    """The benchmarks `tasks` in `folder`; a task that ends in .jsonl is a custom file there.

    `limit`: only the first `limit` problems of each. Raises UsageError for an unknown task, and DataError for a file
    that is missing or differs from the published one, or a custom row that is not a problem.
    """
    benchmarks = [_load_custom(folder, task) if task.endswith(CUSTOM_SUFFIX) else _load(folder, task) for task in tasks]
    return [benchmark._replace(problems=benchmark.problems[:limit]) for benchmark in benchmarks]


def _load(folder: Path, task: str) -> Benchmark:
    if task not in PUBLISHED:
        raise UsageError(
            "there is no such task",
            where="--tasks",
            found=task,
            expected=f"{', '.join(PUBLISHED)}, or FILE{CUSTOM_SUFFIX} in the folder of --data",
        )
    published = PUBLISHED[task]
    path = folder / published.file
    content = _read(path, published.source)
    sha256 = hashlib.sha256(content).hexdigest()
    rows = content.splitlines()
    if sha256 != published.sha256:
        raise DataError(
            f"the file is not the published {task}",
            where=path,
            found=f"{len(rows):,} rows, sha256 {sha256}",
            expected=f"{published.rows:,} rows, sha256 {published.sha256}",
            fix=f"copy it unchanged from {published.source}",
        )
    assert len(rows) == published.rows
    problems = []
    for number in published.problem_rows or range(len(rows)):
        question, reference, level, subject = published.read_row(json.loads(rows[number]))
        problems.append(
            Problem(task, number, question, str(reference), published.language, level, subject, published.kind)
        )
    return Benchmark(task, published.file, sha256, len(rows), tuple(problems))


def _load_custom(folder: Path, file: str) -> Benchmark:
    path, task = folder / file, Path(file).stem
    if task in PUBLISHED:
        raise UsageError(
            "a custom file has the name of a benchmark",
            where="--tasks",
            found=file,
            expected=f"a name other than {', '.join(PUBLISHED)}",
            fix="rename the file",
        )
    content = _read(path, "your own data")
    rows = content.splitlines()
    problems = tuple(_custom_problem(path, task, number, row) for number, row in enumerate(rows))
    return Benchmark(task, path.name, hashlib.sha256(content).hexdigest(), len(rows), problems)


def _custom_problem(path: Path, task: str, number: int, line: bytes) -> Problem:
    where = f"{path}:{number + 1}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError("the line is not JSON", where=where, found=error, expected="one JSON object") from None
    values = row if isinstance(row, dict) else {}
    question, keys = values.get("question"), [key for key in _KIND_OF_KEY if key in values]
    reference = values.get(keys[0]) if len(keys) == 1 else None
    is_reference = isinstance(reference, str | int | float) if keys == ["answer"] else isinstance(reference, str)
    if not isinstance(question, str) or not is_reference or isinstance(reference, bool):
        raise DataError(
            "the row is not a problem",
            where=where,
            found=f"{line[:80]!r}",
            expected="an object with the text `question` and exactly one of `answer` (a text or a number), `tests` and "
            "`statement` (texts)",
        )
    language = values.get("language") or detect_language([Message("user", question)])
    level, subject = (None if values.get(name) is None else str(values[name]) for name in ("level", "subject"))
    return Problem(task, number, question, str(reference), str(language), level, subject, _KIND_OF_KEY[keys[0]])


def _read(path: Path, source: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            "a benchmark's file cannot be read",
            where=path,
            found=error.strerror,
            expected="a file of problems, one JSON object per line",
            fix=f"copy it there from {source}, or name its folder with --data",
        ) from None
    if not content.strip():
        raise DataError("a benchmark's file is empty", where=path, found="no row", expected="one JSON object per line")
    return content
