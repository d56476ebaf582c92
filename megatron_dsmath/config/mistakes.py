"""Pydantic's validation errors as `ConfigError`s that name the key, its line and the fix."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches
from types import NoneType
from typing import Any, get_args, get_origin

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
    details = error.errors()
    unknown = {item["loc"]: _nearest(item["loc"], section) for item in details if item["type"] == "extra_forbidden"}
    errors = []
    for item in details:
        location, where = item["loc"], source.where(prefix + _dotted(item["loc"]))
        if location in unknown:
            errors.append(_unknown_key(location, where, unknown[location], section, reference))
        elif item["type"] == "missing":
            if location not in unknown.values():
                errors.append(_missing_key(location, where, section, f"add {prefix}{_dotted(location)}; {reference}"))
        elif item["type"] != "too_short" or not item["input"]:  # pydantic does not count a list's invalid items
            errors.append(_invalid_value(item, where, section))
    return errors


def keys(section: SectionType = RunConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every dotted key of a section and its subsections; a key of a list's items is listed below the list."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        inner = section_of(field)
        if inner is not None:
            yield from keys(inner, f"{prefix}{name}.")


def section_of(field: FieldInfo) -> SectionType | None:
    """The section that a field holds, alone or as items of a list or mapping; None for a plain value."""
    for candidate in _annotations(field.annotation):
        # In Python 3.10 tuple[int, ...] is an instance of type, and issubclass() raises for it.
        if get_origin(candidate) is None and isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _annotations(annotation: Any) -> Iterator[Any]:
    """Yield an annotation and the parts of it, as `tuple[X, ...]` and `X` of `tuple[X, ...] | None`."""
    yield annotation
    for part in get_args(annotation):
        yield from _annotations(part)


def is_list(field: FieldInfo) -> bool:
    """Whether a field holds a list of values or sections."""
    return tuple in _origins(field)


def _origins(field: FieldInfo) -> set[Any]:
    return {get_origin(candidate) for candidate in (field.annotation, *get_args(field.annotation))}


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


def _unknown_key(
    location: Location, where: str, nearest: Location | None, section: SectionType, reference: str
) -> ConfigError:
    _, parent = _find(location[:-1], section)
    return ConfigError(
        f"unknown key {str(location[-1])!r}",
        where=where,
        found=_dotted(location),
        expected=_dotted(nearest) if nearest else f"one of {', '.join(parent.model_fields if parent else ())}",
        fix=f"write {_dotted(nearest)}" if nearest else f"delete it; {reference}",
    )


def _missing_key(location: Location, where: str, section: SectionType, fix: str) -> ConfigError:
    expected = _description(location, section)
    return ConfigError(
        f"the key {str(location[-1])!r} is missing", where=where, found="nothing", expected=expected, fix=fix
    )


def _invalid_value(item: ErrorDetails, where: str, section: SectionType) -> ConfigError:
    phrase, instruction = _TYPES.get(item["type"], (None, "write such a value"))
    expected = phrase or item["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    field, _ = _find(item["loc"], section)
    if field is not None and isinstance(item["loc"][-1], str) and NoneType in get_args(field.annotation):
        expected += " or null"
    return ConfigError(
        "the value of a key is not valid",
        where=where,
        found=f"{write_inline(item['input']):.200}",
        expected=expected,
        fix=f"{instruction}. {_description(item['loc'], section)}".rstrip(),
    )


def _find(location: Location, section: SectionType) -> tuple[FieldInfo | None, SectionType | None]:
    """The field at a location of the file, and the section that it holds."""
    field: FieldInfo | None = None
    inner: SectionType | None = section
    parts = iter(location)
    for part in parts:
        field = inner.model_fields.get(str(part)) if inner else None
        inner = section_of(field) if field else None
        if field is not None and _origins(field) & {tuple, dict}:
            next(parts, None)  # the index or key of an item
    return field, inner


def _description(location: Location, section: SectionType) -> str:
    """The first line of the docstring of a key, or of its section."""
    field, inner = _find(location, section)
    text = (field.description or (inner.__doc__ if inner else "") or "") if field else ""
    return text.strip().partition("\n")[0]


def _nearest(location: Location, section: SectionType) -> Location | None:
    """The key that a misspelled one most likely means: first in its own section, then anywhere."""
    name, (_, parent) = str(location[-1]), _find(location[:-1], section)
    here = get_close_matches(name, parent.model_fields if parent else (), n=1)
    if here:
        return (*location[:-1], here[0])
    anywhere = {key.rpartition(".")[2]: key for key, _ in keys(section)}
    matches = get_close_matches(name, anywhere, n=1)
    return tuple(anywhere[matches[0]].split(".")) if matches else None


def _dotted(location: Location) -> str:
    return ".".join(map(str, location))
