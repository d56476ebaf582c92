"""The files a set is built from, and what is said of each: by a recipe, or by its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import Field, PositiveInt, ValidationError

from megatron_dsmath.config.mistakes import validation_errors
from megatron_dsmath.config.sections import Section
from megatron_dsmath.config.source import Source as SourceText
from megatron_dsmath.config.source import lists_to_tuples, read
from megatron_dsmath.data.sft.conversation import parse_row
from megatron_dsmath.data.sft.formats import FORMATS, require_format
from megatron_dsmath.data.text.document_batches import conversation_row_batches
from megatron_dsmath.errors import ConfigError, DataError, UsageError, raise_all

Kind = Literal["cot", "pot", "tool"]
Language = Literal["en", "zh"]
FormatName = Literal[
    "messages", "sharegpt", "alpaca", "mathinstruct", "lila", "question_answer", "question_code", "tal_scq5k"
]

EXAMPLE = "configs/sft/recipes/deepseekmath_instruct.yaml"


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
        recipe = Recipe.model_validate(lists_to_tuples(source.tree))
    except ValidationError as error:
        found += validation_errors(error, source, Recipe, f"{EXAMPLE} is a complete recipe")
    else:
        found += _names_twice(recipe, source)
    raise_all(found)
    return recipe


def _names_twice(recipe: Recipe, source: SourceText) -> list[ConfigError]:
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


SET_ENDINGS = (".gz", ".zst", ".jsonl", ".json", ".ndjson", ".parquet")


@dataclass(frozen=True)
class ConversationSource:
    """One source: its files, what is said of all its rows (None: each tells it itself), and how often they are read."""

    name: str
    paths: tuple[Path, ...]
    format: str | None = None
    kind: str | None = None
    language: str | None = None
    instruction: str | None = None
    passes_per_epoch: float = 1.0
    expected_examples: int | None = None


@dataclass(frozen=True)
class SourceFile:
    """One file of a source. `source` and `number` are places in the lists of sources and of files."""

    path: Path
    number: int
    source: int
    format: str
    format_is_detected: bool


class SelectedSources(NamedTuple):
    """What a command line names: the sources, and how many examples they should have together."""

    sources: tuple[ConversationSource, ...]
    expected_examples: int | None


def select_sources(
    files: Sequence[str | Path], recipe: Path | None, format_name: str | None = None, instruction: str | None = None
) -> SelectedSources:
    """The sources of files, or of a recipe, which says all else itself.

    Raises UsageError, ConfigError, DataError.
    """
    if format_name is not None and format_name not in FORMATS:
        raise UsageError(
            "there is no such format", where="--format", found=repr(format_name), expected=", ".join(FORMATS)
        )
    if recipe is None:
        return SelectedSources(sources_from_files(files, format_name, instruction), None)
    if files or format_name or instruction:
        raise UsageError(
            "a recipe names files, formats and instructions itself",
            where=f"--recipe {recipe}",
            found="FILE, --format or --instruction beside it",
            expected="one or the other",
            fix="write them into the recipe",
        )
    content = load_recipe(recipe)
    return SelectedSources(sources_from_recipe(content), content.expected_examples)


def sources_from_files(
    files: Sequence[str | Path], format_name: str | None = None, instruction: str | None = None
) -> tuple[ConversationSource, ...]:
    """A source for each file, named as the file without its endings. Raises UsageError where two have one name."""
    paths = [Path(file) for file in files]
    names = Counter(map(_stem, paths))
    for name, count in names.items():
        if count > 1:
            raise UsageError(
                "two sources have one name",
                where=", ".join(str(path) for path in paths if _stem(path) == name),
                found=f"{name!r} {count} times",
                expected="a name of its own for each file",
                fix="rename one, or name the sources in a recipe: --recipe",
            )
    return tuple(ConversationSource(_stem(path), (path,), format_name, instruction=instruction) for path in paths)


def sources_from_recipe(recipe: Recipe) -> tuple[ConversationSource, ...]:
    """The sources of a recipe, patterns resolved. Raises DataError where a pattern names no file."""
    return tuple(
        ConversationSource(
            entry.name,
            tuple(path for pattern in entry.paths for path in _matches(pattern, entry.name)),
            entry.format,
            entry.kind,
            entry.language,
            entry.instruction,
            entry.passes_per_epoch,
            entry.expected_examples,
        )
        for entry in recipe.sources
    )


def list_source_files(sources: Sequence[ConversationSource], *, skip_bad_rows: bool) -> list[SourceFile]:
    """Every file, its format told by its first row (with `skip_bad_rows`, by the first that has one).

    Raises UsageError where there is no file, or one stands twice; DataError where a format cannot be told.
    """
    placed = [(place, path) for place, source in enumerate(sources) for path in source.paths]
    if not placed:
        raise UsageError("no input file was given", expected="one or more JSONL files, or a recipe that names some")
    for path, count in Counter(path.resolve() for _, path in placed).items():
        if count > 1:
            raise UsageError("the same input file is named twice", where=path, found=f"{count} times", expected="once")
    return [
        SourceFile(
            path,
            number,
            place,
            sources[place].format or _detect(path, skip_bad_rows),
            sources[place].format is None,
        )
        for number, (place, path) in enumerate(placed)
    ]


def _detect(path: Path, skip_bad_rows: bool) -> str:
    first_error: DataError | None = None
    for batch in conversation_row_batches([path]):
        for row in batch.rows:
            try:
                return require_format(parse_row(path, row))
            except DataError as error:
                if not skip_bad_rows:
                    raise
                first_error = first_error or error
    assert first_error is not None  # an empty file is refused when it is read
    raise first_error


def _matches(pattern: str, name: str) -> list[Path]:
    paths = [Path(match) for match in sorted(glob(pattern, recursive=True))]  # noqa: PTH207, pathlib matches no absolute pattern
    if not paths:
        raise DataError(
            "a source names a file that is not there",
            where=f"source {name}",
            found=pattern,
            expected="a file, or a pattern that some file has",
            fix="correct the path, or write paths: [] while it is missing",
        )
    return paths


def _stem(path: Path) -> str:
    name = path.name
    for ending in SET_ENDINGS:
        name = name.removesuffix(ending)
    return name
