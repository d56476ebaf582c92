"""Problems from the benchmarks' files (`published`), or from files of one's own. No row is ever dropped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from megatron_dsmath.data.sft.conversation import Message, detect_language
from megatron_dsmath.errors import DataError, UsageError
from megatron_dsmath.evaluation.published import PUBLISHED, Kind

OWN_FILE = ".jsonl"
_KIND_OF_KEY: dict[str, Kind] = {"answer": "answer", "tests": "tests", "statement": "proof"}
"""What a row of one's own holds beside its question says what an output is held to."""


class Problem(NamedTuple):
    """A question and what an output is held to, with what the benchmark says of it."""

    task: str
    row: int
    """Of its file, from 0."""
    question: str
    reference: str
    """The answer, or a solution that ends in it; the tests; the statement to prove, with the theory's header."""
    language: str
    level: str | None = None
    subject: str | None = None
    kind: Kind = "answer"


class Benchmark(NamedTuple):
    """A task's problems and the file they came from."""

    task: str
    file: str
    sha256: str
    rows: int
    """Of the file; `problems` are fewer where not all of them are, or only some were asked for."""
    problems: tuple[Problem, ...]


def load(folder: Path, tasks: Sequence[str], limit: int | None = None) -> list[Benchmark]:
    """The benchmarks `tasks` in `folder`; a task that ends in .jsonl is a file of one's own there.

    `limit`: the first so many problems of each. Raises UsageError for an unknown task, DataError for a file that is
    missing, has other bytes than the published one, or a row that is none.
    """
    benchmarks = [_load(folder, task) for task in tasks]
    return [benchmark._replace(problems=benchmark.problems[:limit]) for benchmark in benchmarks]


def _load(folder: Path, task: str) -> Benchmark:
    if task.endswith(OWN_FILE):
        if Path(task).stem in PUBLISHED:
            raise UsageError(
                "one's own problems have the name of a benchmark",
                where="--tasks",
                found=task,
                expected=f"a name that is none of {', '.join(PUBLISHED)}",
                fix="rename the file",
            )
        return _own(folder / task, Path(task).stem)
    if task not in PUBLISHED:
        raise UsageError(
            "no such task",
            where="--tasks",
            found=task,
            expected=f"{', '.join(PUBLISHED)}, or FILE{OWN_FILE} under --data with `question` and `answer` in each row",
        )
    published = PUBLISHED[task]
    path = folder / published.file
    content = _content(path, published.source)
    sha256 = hashlib.sha256(content).hexdigest()
    rows = content.splitlines()
    if sha256 != published.sha256:
        raise DataError(
            f"the file is not the {task} that was published",
            where=path,
            found=f"{len(rows):,} rows, sha256 {sha256}",
            expected=f"{published.rows:,} rows, sha256 {published.sha256}",
            fix=f"take it from {published.source}, unchanged",
        )
    assert len(rows) == published.rows  # the bytes say so
    problems = []
    for number in published.asked or range(len(rows)):
        question, reference, level, subject = published.read(json.loads(rows[number]))
        problems.append(
            Problem(task, number, question, str(reference), published.language, level, subject, published.kind)
        )
    return Benchmark(task, published.file, sha256, len(rows), tuple(problems))


def _own(path: Path, task: str) -> Benchmark:
    content = _content(path, "your own data")
    rows = content.splitlines()
    problems = tuple(_own_problem(path, task, number, row) for number, row in enumerate(rows))
    return Benchmark(task, path.name, hashlib.sha256(content).hexdigest(), len(rows), problems)


def _own_problem(path: Path, task: str, number: int, content: bytes) -> Problem:
    where = f"{path}:{number + 1}"
    try:
        row = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError("the line is not JSON", where=where, found=error, expected="one JSON object") from None
    values = row if isinstance(row, dict) else {}
    question, keys = values.get("question"), [key for key in _KIND_OF_KEY if key in values]
    reference = values.get(keys[0]) if len(keys) == 1 else None
    is_reference = isinstance(reference, str | int | float) if keys == ["answer"] else isinstance(reference, str)
    if not isinstance(question, str) or not is_reference or isinstance(reference, bool):
        raise DataError(
            "a row is no problem",
            where=where,
            found=f"{content[:80]!r}",
            expected="an object with `question`, a text, and one of `answer`, a text or a number, `tests` and "
            "`statement`, texts",
        )
    language = values.get("language") or detect_language([Message("user", question)])
    level, subject = (None if values.get(name) is None else str(values[name]) for name in ("level", "subject"))
    return Problem(task, number, question, str(reference), str(language), level, subject, _KIND_OF_KEY[keys[0]])


def _content(path: Path, source: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(
            "a benchmark is not there",
            where=path,
            found=error.strerror,
            expected="a file of problems, a JSON object a line",
            fix=f"put it there from {source}, or name its folder with --data",
        ) from None
    if not content.strip():
        raise DataError("a benchmark is empty", where=path, found="no row", expected="a JSON object a line")
    return content
