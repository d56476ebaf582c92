from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_dsmath.cli import main

ROWS = [
    {"prediction": "The answer is $18.", "answer": "18", "task": "gsm8k"},
    {"prediction": r"\boxed{100}", "answer": 1, "task": "math"},
    {"prediction": "I do not know", "answer": "3", "id": "p7"},
]


def write_rows(file: Path, rows: list[object]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_a_file_of_outputs_gives_one_verdict_per_row_and_the_accuracy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "verdicts.jsonl"
    assert main(["grade", write_rows(tmp_path / "rows.jsonl", list(ROWS)), "--out", str(out), "--json"]) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["correct"] for row in rows] == [True, False, False]
    assert [row["correct_as_the_paper"] for row in rows] == [True, True, False]
    assert [row["extracted"] for row in rows] == ["$18", "100", None]
    assert (rows[2]["id"], rows[2]["note"]) == ("p7", "no answer")
    summary = json.loads(capsys.readouterr().out)
    assert (summary["rows"], summary["accuracy"], summary["disagreements"]) == (3, 1 / 3, [2])


@pytest.mark.parametrize(
    "row",
    [
        {"answer": "3"},
        {"prediction": 3, "answer": "3"},
        {"prediction": "3"},
        7,
        {"prediction": "3", "answer": ""},
        {"prediction": "3", "answer": "3", "task": 1},
    ],
)
def test_an_invalid_row_is_refused_with_its_line(
    row: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["grade", write_rows(tmp_path / "rows.jsonl", [ROWS[0], row])]) == 78
    assert "rows.jsonl:2" in capsys.readouterr().err


def test_the_input_is_never_overwrite_rows(tmp_path: Path) -> None:
    file = write_rows(tmp_path / "rows.jsonl", list(ROWS))
    assert main(["grade", file, "--out", file]) == 78
