"""Reads the questions and answers of a benchmark file: the texts that a corpus must not contain."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from megatron_dsmath.errors import DataError
from megatron_dsmath.files.lines import LINE_LIMIT_BYTES, Line, LineReader

# Usual field names of benchmarks, alone or as the last word: `informal_statement`, `Answer`, `gt_cot`.
QUESTION_FIELD = re.compile(r"(?:\w+_)?(?:question|problem|passage|prompt|instruction|input|query|statement)", re.I)
ANSWER_FIELD = re.compile(
    r"(?:\w+_)?(?:answer|golden|solution|cot|rationale|explanation|analysis|proof|output|response)", re.I
)
CONVERSATION_FIELD = "messages"


class BenchmarkText(NamedTuple):
    """One text of a benchmark. A text shorter than an n-gram is compared only if it is a question."""

    row: int
    field: str
    text: str
    is_question: bool


@dataclass
class Benchmark:
    """The texts of one file. `rows_without_text` counts, per field, the rows that gave no text."""

    path: Path
    rows: int = 0
    texts: list[BenchmarkText] = field(default_factory=list)
    rows_without_text: Counter[str] = field(default_factory=Counter)


def read_benchmark(path: Path, fields: Sequence[str] | None = None) -> Benchmark:
    """Read the texts of a .jsonl, .jsonl.gz or .jsonl.zst file, by default of fields with a usual name.

    `fields` names the fields to read instead; a field without a usual name for answers holds questions. In a
    conversation (`messages`), the turns of the assistant are answers and all others questions. A list gives one text
    per string. Raises DataError for a line that is not a JSON object and for a file without any text.
    """
    benchmark = Benchmark(path)
    with LineReader(path) as lines:
        for line in lines:
            benchmark.rows += 1
            for name, value in _parse_row(path, line).items():
                texts = list(_texts(name, value)) if _is_text_field(name, fields) else []
                benchmark.texts += [BenchmarkText(line.number, name, text, question) for text, question in texts]
                if not texts:
                    benchmark.rows_without_text[name] += 1
    if not benchmark.texts:
        raise DataError(
            "the benchmark has no text to compare with",
            where=path,
            found=", ".join(map(repr, benchmark.rows_without_text)) or "rows without a field",
            expected=", ".join(fields) if fields else "a field such as question, problem, answer, solution or messages",
            fix="name the fields that contain its texts: --benchmark-fields",
        )
    return benchmark


def _is_text_field(name: str, fields: Sequence[str] | None) -> bool:
    if fields is not None:
        return name in fields
    return bool(name == CONVERSATION_FIELD or QUESTION_FIELD.fullmatch(name) or ANSWER_FIELD.fullmatch(name))


def _texts(name: str, value: Any) -> Iterator[tuple[str, bool]]:
    """Yield each string of a field and whether it is a question."""
    for part in value if isinstance(value, list) else [value]:
        if isinstance(part, str) and part.strip():
            yield part, not ANSWER_FIELD.fullmatch(name)
        elif isinstance(part, dict) and isinstance(part.get("content"), str) and part["content"].strip():
            yield part["content"], part.get("role") != "assistant"


def _parse_row(path: Path, line: Line) -> dict[str, Any]:
    where = f"{path}:{line.number}"
    if line.size_bytes > LINE_LIMIT_BYTES:
        raise _not_a_row(where, f"a line of {line.size_bytes:,} bytes")
    try:
        row = json.loads(line.content.decode())
        json.dumps(row, ensure_ascii=False).encode()  # raises for a lone surrogate
    except (ValueError, RecursionError) as error:
        raise _not_a_row(where, error) from None
    if not isinstance(row, dict):
        raise _not_a_row(where, type(row).__name__)
    return row


def _not_a_row(where: str, found: object) -> DataError:
    return DataError(
        "the line is not a row of a benchmark",
        where=where,
        found=found,
        expected="one JSON object in UTF-8",
        fix="correct the line, or convert the file to JSONL",
    )
