"""The sources of a set: files from a command line or a recipe, with their format, kind and language."""

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
    """Its name in metrics and reports."""
    paths: tuple[str, ...]
    """Its files, or patterns of files; empty while they are missing."""
    format: FormatName | None
    """The format of its rows; null detects it from their fields."""
    kind: Kind | None
    """The kind of reasoning of all its rows; null detects it for each row."""
    language: Language | None
    """The language of all its rows; null detects it for each row."""
    instruction: Literal["cot", "tool"] | None
    """The instruction of the paper after each question, in the row's language; null for none."""
    passes_per_epoch: float = Field(gt=0)
    """How often an epoch reads its examples: 1 once, 0.5 half of them, 2 all twice."""
    expected_examples: PositiveInt | None
    """The number of examples it should have; null where unknown."""


class Recipe(Section):
    """A set of conversations from several sources."""

    expected_examples: PositiveInt | None
    """The number of examples that all sources together should have (paper: 776,000); null where unknown."""
    sources: tuple[RecipeSource, ...] = Field(min_length=1)
    """The sources, at least one."""


def load_recipe(path: str | Path) -> Recipe:
    """Read a recipe. Raises ConfigError, or Refusals with all mistakes, each with its line."""
    source = read(path)
    found = list(source.mistakes)
    try:
        recipe = Recipe.model_validate(lists_to_tuples(source.tree))
    except ValidationError as error:
        found += validation_errors(error, source, Recipe, f"{EXAMPLE} is a complete recipe")
    else:
        found += _repeated_names(recipe, source)
    raise_all(found)
    return recipe


def _repeated_names(recipe: Recipe, source: SourceText) -> list[ConfigError]:
    first: dict[str, int] = {}
    found = []
    for index, entry in enumerate(recipe.sources):
        if entry.name in first:
            found.append(
                ConfigError(
                    "two sources have the same name",
                    where=source.where(f"sources.{index}.name"),
                    found=f"{entry.name!r}, first at {source.where(f'sources.{first[entry.name]}.name')}",
                    expected="a different name for each source",
                    fix="rename one, or give both files to one source",
                )
            )
        first.setdefault(entry.name, index)
    return found


SET_ENDINGS = (".gz", ".zst", ".jsonl", ".json", ".ndjson", ".parquet")


@dataclass(frozen=True)
class ConversationSource:
    """One source: its files, and properties that all its rows share (None: detected for each row)."""

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
    """One file of a source. `number` counts all files, `source` is an index into the sources."""

    path: Path
    number: int
    source: int
    format: str
    format_is_detected: bool


class SelectedSources(NamedTuple):
    """The sources of a set, and the expected number of examples in all of them together."""

    sources: tuple[ConversationSource, ...]
    expected_examples: int | None


def select_sources(
    files: Sequence[str | Path], recipe: Path | None, format_name: str | None = None, instruction: str | None = None
) -> SelectedSources:
    """The sources of `files`, or of a recipe in their place. Raises UsageError, ConfigError, DataError."""
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
    """One source per file, with the file's name without endings. Raises UsageError where two have the same name."""
    paths = [Path(file) for file in files]
    for name, count in Counter(map(_stem, paths)).items():
        if count > 1:
            raise UsageError(
                "two sources have the same name",
                where=", ".join(str(path) for path in paths if _stem(path) == name),
                found=f"{name!r} {count} times",
                expected="a different name for each file",
                fix="rename one, or name the sources in a recipe: --recipe",
            )
    return tuple(ConversationSource(_stem(path), (path,), format_name, instruction=instruction) for path in paths)


def sources_from_recipe(recipe: Recipe) -> tuple[ConversationSource, ...]:
    """The sources of a recipe with the files of their patterns. Raises DataError where a pattern matches no file."""
    return tuple(
        ConversationSource(
            **{**dict(entry), "paths": tuple(path for pattern in entry.paths for path in _matches(pattern, entry.name))}
        )
        for entry in recipe.sources
    )


def list_source_files(sources: Sequence[ConversationSource], *, skip_bad_rows: bool) -> list[SourceFile]:
    """All files, with the format detected from the first row, or with `skip_bad_rows` from the first valid row.

    Raises UsageError where there is no file, or the same file twice; DataError where a format is not detected.
    """
    indexed = [(index, path) for index, source in enumerate(sources) for path in source.paths]
    if not indexed:
        raise UsageError("no input file was given", expected="one or more JSONL files, or a recipe that names some")
    for path, count in Counter(path.resolve() for _, path in indexed).items():
        if count > 1:
            raise UsageError("the same input file is given twice", where=path, found=f"{count} times", expected="once")
    return [
        SourceFile(
            path,
            number,
            index,
            sources[index].format or _detect_format(path, skip_bad_rows),
            sources[index].format is None,
        )
        for number, (index, path) in enumerate(indexed)
    ]


def _detect_format(path: Path, skip_bad_rows: bool) -> str:
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
            "a file of a source does not exist",
            where=f"source {name}",
            found=pattern,
            expected="a file, or a pattern that matches files",
            fix="correct the path, or write paths: [] while the file is missing",
        )
    return paths


def _stem(path: Path) -> str:
    name = path.name
    for ending in SET_ENDINGS:
        name = name.removesuffix(ending)
    return name
