"""Pydantic's validation errors as `ConfigError`s that name the key, its line and the fix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.config.source import Source, write_inline
from megatron_dsmath.errors import ConfigError

Location = tuple[str | int, ...]
SectionType = type[BaseModel]


def validation_errors(
    error: ValidationError,
    source: Source,
    section: SectionType = RunConfig,
    reference: str = "docs/reference/config.md lists every key",
    prefix: str = "",
) -> list[ConfigError]:
    """One error for each mistake in a file that should hold a `section`.

    A misspelled key is one mistake, not an unknown and a missing one. `reference` says where a user finds every key.
    `prefix`: the key of the section in the file, with a dot at the end.
    """
    return _Validation(source, section, reference, prefix).errors(error.errors())


def keys(section: SectionType = RunConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key of a section and its subsections; a key of a list's items is listed below the list."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        inner = section_of(field)
        if inner is not None:
            yield from keys(inner, f"{prefix}{name}.")


def section_of(field: FieldInfo) -> SectionType | None:
    """The section that a field holds, alone or as items of a list or mapping; None for a plain value."""
    for candidate in (field.annotation, *get_args(field.annotation)):
        # In Python 3.10 tuple[int, ...] is an instance of type, and issubclass() raises for it.
        if get_origin(candidate) is None and isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def is_list(field: FieldInfo) -> bool:
    """Whether a field holds a list of values or sections."""
    return tuple in _origins(field)


def _origins(field: FieldInfo) -> set[Any]:
    return {get_origin(candidate) for candidate in (field.annotation, *get_args(field.annotation))}


class _Key(NamedTuple):
    """What a location of a file holds: its field, and the section that it is or holds; None for unknown keys."""

    field: FieldInfo | None
    section: SectionType | None


# For each of pydantic's error types: the expected value (None: pydantic's own text) and how to write it.
_TYPES: dict[str, tuple[str | None, str]] = {
    "int_type": ("a whole number", "write digits, without quotes"),
    "float_type": ("a number", "write a number, without quotes"),
    "bool_type": ("true or false", "write true or false, without quotes"),
    "string_type": ("text", 'write text, in "quotes" if it looks like another type'),
    "string_pattern_mismatch": ("letters, digits, `_`, `.` and `-`", "remove every other character"),
    "tuple_type": ("a list", "write [one, two], or a line with `- ` for each"),
    "too_short": ("a list of at least one", "add one, or a line with `- ` for each"),
    "model_type": ("a section", "write its keys below it, indented, each as `key: value`"),
    "finite_number": ("a finite number", "write a finite number"),
    "literal_error": (None, "write one of these"),
    "greater_than": (None, "write a number in this range"),
    "greater_than_equal": (None, "write a number in this range"),
    "less_than": (None, "write a number in this range"),
    "less_than_equal": (None, "write a number in this range"),
}


class _Validation(NamedTuple):
    """A file and the section that it should hold: the arguments of `validation_errors`."""

    source: Source
    section: SectionType
    reference: str
    prefix: str

    def errors(self, details: Sequence[ErrorDetails]) -> list[ConfigError]:
        unknown = [item["loc"] for item in details if item["type"] == "extra_forbidden"]
        intended = {_dotted(nearest) for location in unknown if (nearest := self.nearest(location))}
        return [self.error(item) for item in details if not _is_consequence(item, intended)]

    def error(self, item: ErrorDetails) -> ConfigError:
        location, key = item["loc"], self.prefix + _dotted(item["loc"])
        if item["type"] == "extra_forbidden":
            return self.unknown_key(location)
        if item["type"] == "missing":
            return ConfigError(
                f"the key {str(location[-1])!r} is missing",
                where=self.source.where(key),
                found="nothing",
                expected=self.description(location),
                fix=f"add {key}; {self.reference}",
            )
        phrase, instruction = _TYPES.get(item["type"], (None, "write such a value"))
        expected = phrase or item["msg"].removeprefix("Input should be ")
        return ConfigError(
            "the value of a key is not valid",
            where=self.source.where(key),
            found=f"{write_inline(item['input']):.200}",
            expected=f"{expected} or null" if self.may_be_null(location) else expected,
            fix=f"{instruction}. {self.description(location) or ''}".rstrip(),
        )

    def unknown_key(self, location: Location) -> ConfigError:
        nearest = self.nearest(location)
        return ConfigError(
            f"unknown key {str(location[-1])!r}",
            where=self.source.where(self.prefix + _dotted(location)),
            found=_dotted(location),
            expected=_dotted(nearest) if nearest else f"one of {', '.join(self.names_in(location[:-1]))}",
            fix=f"write {_dotted(nearest)}" if nearest else f"delete it; {self.reference}",
        )

    def find(self, location: Location) -> _Key:
        key = _Key(None, self.section)
        parts = iter(location)
        for part in parts:
            field = key.section.model_fields.get(str(part)) if key.section else None
            key = _Key(field, section_of(field) if field else None)
            if field is not None and _origins(field) & {tuple, dict}:
                next(parts, None)  # the index or key of an item
        return key

    def description(self, location: Location) -> str | None:
        """The first line of the key's own docstring or of its section's."""
        field, section = self.find(location)
        text = (field.description if field else None) or (section.__doc__ if field and section else None) or ""
        return text.strip().partition("\n")[0] if field else None

    def names_in(self, location: Location) -> list[str]:
        """The names of the keys directly in the section at `location`."""
        section = self.find(location).section
        return list(section.model_fields) if section else []

    def nearest(self, location: Location) -> Location | None:
        """The key that a misspelled one most likely means: first in its own section, then anywhere."""
        name, section = str(location[-1]), location[:-1]
        here = get_close_matches(name, self.names_in(section), n=1)
        if here:
            return (*section, here[0])
        anywhere = {key.rpartition(".")[2]: key for key, _ in keys(self.section)}
        matches = get_close_matches(name, anywhere, n=1)
        return tuple(anywhere[matches[0]].split(".")) if matches else None

    def may_be_null(self, location: Location) -> bool:
        field = self.find(location).field
        return field is not None and isinstance(location[-1], str) and NoneType in get_args(field.annotation)


def _is_consequence(item: ErrorDetails, intended: set[str]) -> bool:
    """Whether another error explains this one."""
    if item["type"] == "too_short":
        return bool(item["input"])  # pydantic does not count a list's invalid items
    return item["type"] == "missing" and _dotted(item["loc"]) in intended


def _dotted(location: Location) -> str:
    return ".".join(map(str, location))
