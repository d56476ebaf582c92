"""The rows of an evaluation on the disk: one a problem and sample, appended as they are ready."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_dsmath.errors import OutputError
from megatron_dsmath.evaluation.answering import Answer
from megatron_dsmath.evaluation.verdicts import Judgement
from megatron_dsmath.files.atomic_files import replace_text, write_error

Row = Mapping[str, Any]
Key = tuple[int, int]
"""Row of the benchmark, and sample."""

FOLDER = "outputs"


def row_of(answer: Answer, judgement: Judgement) -> Row:
    """All that is known of an answer."""
    problem = answer.problem
    return {
        "task": problem.task,
        "row": problem.row,
        "sample": answer.sample,
        "level": problem.level,
        "subject": problem.subject,
        "language": problem.language,
        "question": problem.question,
        "reference": problem.reference,
        "prompt": answer.prompt,
        "output": answer.output,
        "programs": [
            {
                "program": program.text,
                "verdict": program.outcome.verdict,
                "stdout": program.outcome.stdout,
                "error": program.outcome.error,
            }
            for program in answer.programs
        ],
        "tool_calls": answer.calls,
        "new_tokens": answer.new_tokens,
        "end": answer.end,
        "prediction": answer.prediction,
        **judgement,
    }


def path_of(out: Path, task: str) -> Path:
    """Where the rows of a task are."""
    return out / FOLDER / f"{task}.jsonl"


def read_rows(path: Path) -> dict[Key, Row]:
    """The rows that are there; half of one, which a killed evaluation leaves, is cut off.

    Raises OutputError, naming the line, for what no evaluation has written.
    """
    if not path.is_file():
        return {}
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        os.truncate(path, len(whole))
    rows = {}
    for number, line in enumerate(whole.split(b"\n")[:-1], 1):
        try:
            row = json.loads(line)
            rows[row["row"], row["sample"]] = row
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise OutputError(
                "a row cannot be read",
                where=f"{path}:{number}",
                found=error,
                expected="a row as an evaluation writes it",
                fix="delete the line, and evaluate again",
            ) from None
    return rows


def append_rows(path: Path, rows: Sequence[Row]) -> None:
    """Add rows, and bring them to the disk. Raises OutputError."""
    lines = b"".join(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n" for row in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error, len(lines)) from error


def require_same(out: Path, evaluation: Mapping[str, Any]) -> None:
    """Note in `out` what is evaluated; raise OutputError where another evaluation has begun there."""
    path = out / "evaluation.json"
    if path.is_file():
        begun = json.loads(path.read_bytes())
        differing = [key for key in evaluation if begun.get(key) != evaluation[key]]
        if differing:
            raise OutputError(
                "the directory holds another evaluation",
                where=path,
                found=", ".join(f"{key} {_brief(begun.get(key))}" for key in differing),
                expected=", ".join(f"{key} {_brief(evaluation[key])}" for key in differing),
                fix="choose another --out, or ask for the same again to go on",
            )
        return
    replace_text(path, json.dumps(evaluation, ensure_ascii=False, indent=1) + "\n", durable=True)


def _brief(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)[:120]
