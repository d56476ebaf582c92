from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from megatron_dsmath.tables import print_facts, print_table


@dataclass
class Fact:
    name: str
    token_count: int
    share: float
    path: Path
    held_out: bool
    problem: str | None


LONG = Path("/somewhere/" + "very/" * 40 + "deep")
FACTS = [Fact("数学", 1_234_567, 0.5625, LONG, True, None), Fact("code", 0, 1e-9, Path("a b"), False, "torn")]


def test_json_has_every_value_unchanged(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(FACTS, ("name",), as_json=True)
    printed = capsys.readouterr().out
    assert "数学" in printed
    first, second = json.loads(printed)
    assert first == {
        "name": "数学",
        "token_count": 1_234_567,
        "share": 0.5625,
        "path": str(LONG),
        "held_out": True,
        "problem": None,
    }
    assert second["share"] == 1e-9


def test_a_table_has_its_columns_and_complete_values(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(FACTS, ("name", "token_count", "share", "path", "held_out", "problem"), as_json=False)
    header, _, *rows = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert header.split() == ["name", "token", "count", "share", "path", "held", "out", "problem"]
    assert rows[0].split() == ["数学", "1,234,567", "0.5625", str(LONG), "yes"]
    assert rows[1].split() == ["code", "0", "1e-09", "a", "b", "no", "torn"]


def test_facts_are_one_per_line_with_aligned_values(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts({"token_count": 12_345, "files": ("a", "b"), "nothing": None}, as_json=False)
    assert capsys.readouterr().out.splitlines() == ["token count  12,345", "files        a, b", "nothing      "]


def test_facts_can_be_a_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    print_facts(FACTS[1], as_json=True)
    assert json.loads(capsys.readouterr().out)["problem"] == "torn"
