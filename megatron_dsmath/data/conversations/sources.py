"""The files a set is built from, and what is said of each: by a recipe, or by its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import NamedTuple

from megatron_dsmath.config.sft_recipe import Recipe, load_recipe
from megatron_dsmath.data.conversations.formats import FORMATS, require_format
from megatron_dsmath.data.conversations.row_batches import row_batches
from megatron_dsmath.data.conversations.rows import parse_row
from megatron_dsmath.errors import DataError, UsageError

SET_ENDINGS = (".gz", ".zst", ".jsonl", ".json", ".ndjson", ".parquet")


@dataclass(frozen=True)
class Source:
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


class NamedSources(NamedTuple):
    """What a command line names: the sources, and how many examples they should have together."""

    sources: tuple[Source, ...]
    expected_examples: int | None


def named_sources(
    files: Sequence[str | Path], recipe: Path | None, format_name: str | None = None, instruction: str | None = None
) -> NamedSources:
    """The sources of files, or of a recipe, which says all else itself.

    Raises UsageError, ConfigError, DataError.
    """
    if format_name is not None and format_name not in FORMATS:
        raise UsageError(
            "there is no such format", where="--format", found=repr(format_name), expected=", ".join(FORMATS)
        )
    if recipe is None:
        return NamedSources(sources_of_files(files, format_name, instruction), None)
    if files or format_name or instruction:
        raise UsageError(
            "a recipe names files, formats and instructions itself",
            where=f"--recipe {recipe}",
            found="FILE, --format or --instruction beside it",
            expected="one or the other",
            fix="write them into the recipe",
        )
    content = load_recipe(recipe)
    return NamedSources(sources_of_recipe(content), content.expected_examples)


def sources_of_files(
    files: Sequence[str | Path], format_name: str | None = None, instruction: str | None = None
) -> tuple[Source, ...]:
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
    return tuple(Source(_stem(path), (path,), format_name, instruction=instruction) for path in paths)


def sources_of_recipe(recipe: Recipe) -> tuple[Source, ...]:
    """The sources of a recipe, patterns resolved. Raises DataError where a pattern names no file."""
    return tuple(
        Source(
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


def source_files(sources: Sequence[Source], *, skip_bad_rows: bool) -> list[SourceFile]:
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
    for batch in row_batches([path]):
        for line in batch.block.lines():
            try:
                return require_format(parse_row(path, line))
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
