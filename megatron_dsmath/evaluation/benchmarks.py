"""The benchmarks: which file, how many rows, which bytes, and what a row says. No row is ever dropped."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from megatron_dsmath.data.conversations.conversation import Message, language_of
from megatron_dsmath.errors import DataError, UsageError

OWN_FILE = ".jsonl"


class Problem(NamedTuple):
    """A question and its reference answer, or solution, with what the benchmark says of it."""

    task: str
    row: int
    """Of its file, from 0."""
    question: str
    reference: str
    language: str
    level: str | None = None
    subject: str | None = None


class Benchmark(NamedTuple):
    """A task's problems and the file they came from."""

    task: str
    file: str
    sha256: str
    rows: int
    """Of the file; `problems` are fewer where only some were asked for."""
    problems: tuple[Problem, ...]


class _Published(NamedTuple):
    """A benchmark as it was published: a file with other bytes would give figures that compare with nothing."""

    file: str
    rows: int
    sha256: str
    language: str
    source: str
    read: Callable[[Mapping[str, Any]], tuple[str, str, str | None, str | None]]
    """Question, reference, level and subject of a row."""


def _gsm8k(row: Mapping[str, Any]) -> tuple[str, str, None, None]:
    return row["question"], row["answer"], None, None


def _math(row: Mapping[str, Any]) -> tuple[str, str, str, str]:
    return row["problem"], row["solution"], row["level"], row["type"]


def _mgsm(row: Mapping[str, Any]) -> tuple[str, str, None, None]:
    return row["messages"][0]["content"], row["answer"], None, None


def _cmath(row: Mapping[str, Any]) -> tuple[str, str, str, None]:
    return row["question"], row["golden"], f"Grade {row['grade']}", None


PUBLISHED = {
    "gsm8k": _Published(
        "gsm8k_test.jsonl",
        1319,
        "fd32e8e549626b0dcce350eec7bbace9c463ddbcfa1c0303ba5abe9122450839",
        "en",
        "deepseek-ai/DeepSeek-Math, evaluation/datasets/gsm8k/test.jsonl",
        _gsm8k,
    ),
    "math": _Published(
        "math_test.jsonl",
        5000,
        "3371949f33dd702d04b43fddd7d53a028de0aaca0e76abb1b875a050297b3aa4",
        "en",
        "microsoft/ToRA, src/data/math/test.jsonl",
        _math,
    ),
    "mgsm-zh": _Published(
        "mgsm_zh.jsonl",
        250,
        "165c3b6753e8a8786183c27b9af7b7590d54dca4d0136edadb24d684c95bb50d",
        "zh",
        "deepseek-ai/DeepSeek-Math, evaluation/datasets/mgsm_zh/mgsm_zh.jsonl",
        _mgsm,
    ),
    "cmath": _Published(
        "cmath_test.jsonl",
        1098,
        "cabe17c127c3227912b3384f4755e180f3aa0d9e5865677e7e5e223439bf15eb",
        "zh",
        "deepseek-ai/DeepSeek-Math, evaluation/datasets/cmath/test.jsonl",
        _cmath,
    ),
}


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
    for number, row in enumerate(rows):
        question, reference, level, subject = published.read(json.loads(row))
        problems.append(Problem(task, number, question, str(reference), published.language, level, subject))
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
    question, answer = values.get("question"), values.get("answer")
    if not isinstance(question, str) or isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise DataError(
            "a row is no problem",
            where=where,
            found=f"{content[:80]!r}",
            expected="an object with `question`, a text, and `answer`, a text or a number",
        )
    language = values.get("language") or language_of([Message("user", question)])
    level, subject = (None if values.get(name) is None else str(values[name]) for name in ("level", "subject"))
    return Problem(task, number, question, str(answer), str(language), level, subject)


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
