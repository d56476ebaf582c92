from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from megatron_dsmath.data.sft.conversation import KINDS, LANGUAGES
from megatron_dsmath.data.sft.formats import FORMATS
from megatron_dsmath.data.sft.sources import (
    FormatName,
    Kind,
    Language,
    load_recipe,
    select_sources,
    sources_from_recipe,
)
from megatron_dsmath.errors import ConfigError, DataError, DsmathError, UsageError

PAPER = Path(__file__).parents[3] / "configs" / "sft" / "recipes" / "deepseekmath_instruct.yaml"
ENTRY = """\
  - name: {name}
    paths: [{paths}]
    format: null
    kind: tool
    language: en
    instruction: tool
    passes_per_epoch: 1.0
    expected_examples: 10
"""


def write_recipe(folder: Path, *entries: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text("expected_examples: 100\nsources:\n" + "".join(entries))
    return path


def test_the_paper_s_recipe_has_its_sources_and_their_number() -> None:
    """Section 3.1: English in CoT, PoT and tool-integrated form, Chinese in CoT and tool-integrated form."""
    recipe = load_recipe(PAPER)
    assert recipe.expected_examples == 776_000
    assert [(source.name, source.kind, source.language) for source in recipe.sources] == [
        ("gsm8k_tool", "tool", "en"),
        ("math_tool", "tool", "en"),
        ("mathinstruct", None, "en"),
        ("lila_ood", None, "en"),
        ("k12_zh_cot", "cot", "zh"),
        ("k12_zh_tool", "tool", "zh"),
    ]


def test_names_in_a_recipe_are_those_the_data_knows() -> None:
    assert set(get_args(FormatName)) == set(FORMATS)
    assert (get_args(Kind), get_args(Language)) == (KINDS, LANGUAGES)


def test_patterns_become_files(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl"):
        (tmp_path / name).write_text("{}")
    entries = (ENTRY.format(name="one", paths=f"{tmp_path}/*.jsonl"), ENTRY.format(name="two", paths=""))
    named = select_sources([], write_recipe(tmp_path, *entries))
    assert [source.paths for source in named.sources] == [(tmp_path / "a.jsonl", tmp_path / "b.jsonl"), ()]
    assert named.expected_examples == 100


def test_a_pattern_without_a_file_is_refused(tmp_path: Path) -> None:
    recipe = load_recipe(write_recipe(tmp_path, ENTRY.format(name="one", paths=f"{tmp_path}/*.jsonl")))
    with pytest.raises(DataError, match="does not exist"):
        sources_from_recipe(recipe)


def test_two_sources_of_one_name_are_refused_with_both_lines(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, ENTRY.format(name="one", paths=""), ENTRY.format(name="one", paths=""))
    with pytest.raises(ConfigError, match="same name") as caught:
        load_recipe(path)
    assert str(caught.value.where).startswith(f"{path}:11")
    assert f"{path}:3" in str(caught.value.found)


@pytest.mark.parametrize(
    ("before", "after", "line"),
    [
        ("kind: tool", "kind: proof", 6),
        ("    language: en\n", "", 3),
        ("passes_per_epoch: 1.0", "passes_per_epoch: 0", 9),
        ("instruction: tool", "instruction: yes", 8),
        ("format: null", "form: null", 5),
        ("name: one", "name: a b", 3),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, before: str, after: str, line: int) -> None:
    path = write_recipe(tmp_path, ENTRY.format(name="one", paths="").replace(before, after))
    with pytest.raises(DsmathError) as caught:
        load_recipe(path)
    assert f"{path}:{line}: " in caught.value.text()


def test_a_recipe_and_files_beside_it_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="itself"):
        select_sources(["a.jsonl"], PAPER)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(UsageError, match="no such format"):
        select_sources(["a.jsonl"], None, "openai")
