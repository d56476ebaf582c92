"""docs/faults.md lists the faults that the tests inject and every required fault."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "tools" / "generate_fault_list.py"
specification = importlib.util.spec_from_file_location("generate_fault_list", PATH)
assert specification is not None and specification.loader is not None
tool = importlib.util.module_from_spec(specification)
specification.loader.exec_module(tool)


def test_the_page_in_the_repository_is_up_to_date() -> None:
    assert tool.main(["--check"]) == 0, "run python tools/generate_fault_list.py"


def test_check_reports_a_stale_page_without_changing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "PAGE", tmp_path / "faults.md")
    assert tool.main(["--check"]) == 1
    assert tool.main([]) == 0
    assert tool.main(["--check"]) == 0
    (tmp_path / "faults.md").write_text("by hand", encoding="utf-8")
    assert tool.main(["--check"]) == 1
    assert (tmp_path / "faults.md").read_text(encoding="utf-8") == "by hand"


def test_every_required_fault_is_listed_or_marked_as_not_covered() -> None:
    """The reliability goals of a training run: R1 to R18, R28, and hostile checkpoints (S12)."""
    page = tool.page()
    goals = [*(f"R{number}" for number in (*range(1, 19), 28)), "S12"]
    assert [goal for goal in goals if f"| {goal} | " not in page] == []


def test_every_linked_test_exists() -> None:
    named = re.findall(r"\]\((\.\./tests/[^)]+)\)", tool.page())
    assert "../tests/faults/test_kills.py" in named
    assert [path for path in named if not (PATH.parents[1] / "docs" / path).is_file()] == []
