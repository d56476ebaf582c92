"""The recipe file: its mistakes, each with its line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_dsmath.errors import DsmathError, Refusals
from megatron_dsmath.recipe.recipe_file import load_recipe_file

CONFIGS = Path(__file__).parents[2] / "configs"
EXPORT = "{weights: base, out: models/base}"
VALID = f"""stages:
  - name: base
    train: {{run: runs/base.yaml}}
  - name: model
    export: {EXPORT}
"""


def errors_of(folder: Path, text: str) -> Sequence[DsmathError]:
    path = folder / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(DsmathError) as caught:
        load_recipe_file(path)
    return caught.value.errors if isinstance(caught.value, Refusals) else [caught.value]


def test_a_valid_recipe_has_its_stages_in_order(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text(VALID, encoding="utf-8")
    loaded = load_recipe_file(tmp_path / "recipe.yaml")
    assert [stage.name for stage in loaded.stages] == ["base", "model"]
    assert loaded.stages[0].train is not None and loaded.stages[0].train.run == "runs/base.yaml"
    assert loaded.source.where("stages.1.export.weights").endswith("recipe.yaml:5: stages.1.export.weights")


@pytest.mark.parametrize(
    ("before", "after", "line", "what"),
    [
        ("{run: runs/base.yaml}", "{runs: runs/base.yaml}", 3, "unknown key 'runs'"),
        ("{run: runs/base.yaml}", "{run: 3}", 3, "the value of a key is not valid"),
        ("    train: {run: runs/base.yaml}\n", "", 2, "a stage does exactly one thing"),
        (f"export: {EXPORT}", f"export: {EXPORT}\n    train: {{run: a.yaml}}", 4, "a stage does exactly one thing"),
        ("name: model", "name: base", 4, "two stages have the same name"),
        ("name: model", "name: a/b", 4, "the value of a key is not valid"),
        ("    export:", "    name: again\n    export:", 5, "a key appears twice"),
    ],
)
def test_each_mistake_is_named_with_its_line(tmp_path: Path, before: str, after: str, line: int, what: str) -> None:
    assert VALID.count(before) == 1
    (error,) = errors_of(tmp_path, VALID.replace(before, after))
    assert error.what == what
    assert f"recipe.yaml:{line}: " in str(error.where)


def test_all_mistakes_are_reported_together(tmp_path: Path) -> None:
    text = VALID.replace("run: runs/base.yaml", "run: 3").replace("weights: base", "weights: 4")
    assert [str(error.where).rpartition(" ")[2] for error in errors_of(tmp_path, text)] == [
        "stages.0.train.run",
        "stages.1.export.weights",
    ]


def test_a_recipe_without_stages_is_refused(tmp_path: Path) -> None:
    (error,) = errors_of(tmp_path, "stages: []\n")
    assert "at least one" in str(error.expected)
