"""What an SFT set is made of: its sources, one YAML file (paper, section 3.1)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, PositiveInt, ValidationError

from megatron_dsmath.config.dialect import write_inline
from megatron_dsmath.config.section import Section
from megatron_dsmath.config.source import Source, read
from megatron_dsmath.errors import ConfigError, Refusals

Kind = Literal["cot", "pot", "tool"]
Language = Literal["en", "zh"]
FormatName = Literal[
    "messages", "sharegpt", "alpaca", "mathinstruct", "lila", "question_answer", "question_code", "tal_scq5k"
]


class RecipeSource(Section):
    """One source of the set."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.-]+$")
    """How metrics and reports call it."""
    paths: tuple[str, ...]
    """Its files, or patterns of them; empty until they are there."""
    format: FormatName | None
    """The form of its rows; null detects it from their shape."""
    kind: Kind | None
    """The kind of reasoning of all its rows; null tells it row by row."""
    language: Language | None
    """The language of all its rows; null tells it row by row."""
    instruction: Literal["cot", "tool"] | None
    """Which of the paper's instructions follows each question, in the row's language; null: none."""
    passes_per_epoch: float = Field(gt=0)
    """How often an epoch reads each of its examples: 1 once, 0.5 half of them, 2 all twice."""
    expected_examples: PositiveInt | None
    """How many examples it should have; null where nobody says."""


class Recipe(Section):
    """A whole set."""

    expected_examples: PositiveInt | None
    """How many examples all sources together should have (paper: 776,000); null where nobody says."""
    sources: tuple[RecipeSource, ...] = Field(min_length=1)
    """Where they come from."""


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe; raise ConfigError, or Refusals with all mistakes, each with its line."""
    source = read(path)
    found = list(source.mistakes)
    try:
        recipe = Recipe.model_validate(_frozen(source.tree))
    except ValidationError as error:
        found += [_mistake(item, source) for item in error.errors()]
    else:
        found += _names_twice(recipe, source)
    if found:
        raise found[0] if len(found) == 1 else Refusals(found)
    return recipe


def _names_twice(recipe: Recipe, source: Source) -> list[ConfigError]:
    first: dict[str, int] = {}
    found = []
    for place, entry in enumerate(recipe.sources):
        if entry.name in first:
            found.append(
                ConfigError(
                    "two sources have one name",
                    where=source.where(f"sources.{place}.name"),
                    found=f"{entry.name!r}, first at {source.where(f'sources.{first[entry.name]}.name')}",
                    expected="a name of its own for each source",
                    fix="rename one, or give both files to one source",
                )
            )
        first.setdefault(entry.name, place)
    return found


def _mistake(item: Any, source: Source) -> ConfigError:
    key = ".".join(map(str, item["loc"]))
    what, expected = {
        "missing": ("a key is missing", "every key written out, null where it says nothing"),
        "extra_forbidden": ("unknown key", ", ".join(_names_beside(item["loc"]))),
    }.get(item["type"], ("a value is not what its key takes", item["msg"].removeprefix("Input should be ")))
    return ConfigError(
        what,
        where=source.where(key),
        found="nothing" if item["type"] == "missing" else f"{write_inline(item['input']):.200}",
        expected=expected,
        fix="compare it with configs/sft/recipes/deepseekmath_instruct.yaml",
    )


def _names_beside(location: tuple[str | int, ...]) -> list[str]:
    section = RecipeSource if len(location) > 1 else Recipe
    return list(section.model_fields)


def _frozen(value: Any) -> Any:
    """The same values with tuples for lists, which is what frozen sections hold."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value
