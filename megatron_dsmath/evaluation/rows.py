"""The rows of an evaluation on disk: one per problem and sample, appended batch by batch."""

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


def answer_row(answer: Answer, judgement: Judgement) -> Row:
    """The row of an answer and its verdicts."""
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


def rows_path(out: Path, task: str) -> Path:
    """The file with the rows of a task."""
    return out / "outputs" / f"{task}.jsonl"


def read_rows(path: Path) -> dict[tuple[int, int], Row]:
    """The rows of a file, by row of the benchmark and sample.

    An incomplete last row, which an interrupted evaluation leaves, is removed from the file. Raises OutputError, with
    the line, for a row that no evaluation wrote.
    """
    if not path.is_file():
        return {}
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        os.truncate(path, len(complete))
    rows = {}
    for number, line in enumerate(complete.split(b"\n")[:-1], 1):
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
    """Append rows and flush them to the disk. Raises OutputError."""
    lines = b"".join(json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace") + b"\n" for row in rows)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            file.write(lines)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, error, len(lines)) from error


def require_same_evaluation(out: Path, evaluation: Mapping[str, Any]) -> None:
    """Write the description of the evaluation into `out`; raise OutputError if a different one was started there."""
    path = out / "evaluation.json"
    if path.is_file():
        started = json.loads(path.read_bytes())
        differing = [key for key in evaluation if started.get(key) != evaluation[key]]
        if differing:
            raise OutputError(
                "the directory holds another evaluation",
                where=path,
                found=", ".join(f"{key} {_brief(started.get(key))}" for key in differing),
                expected=", ".join(f"{key} {_brief(evaluation[key])}" for key in differing),
                fix="choose another --out, or repeat the same command to resume",
            )
        return
    replace_text(path, json.dumps(evaluation, ensure_ascii=False, indent=1) + "\n", durable=True)


def _brief(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)[:120]
