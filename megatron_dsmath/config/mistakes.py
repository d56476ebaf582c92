"""What pydantic says is wrong with a run, as a user of the run file reads it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from types import NoneType
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.config.source import Source, write_inline
from megatron_dsmath.errors import ConfigError

Location = Sequence[str | int]


def keys(section: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a section and of those below it, dotted; the keys of a list's items stand under the list's."""
    for name, field in section.model_fields.items():
        yield f"{prefix}{name}", field
        inner = section_of(field)
        if inner is not None:
            yield from keys(inner, f"{prefix}{name}.")


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section a field holds, alone or as a list of them; None for a plain value."""
    for candidate in (field.annotation, *get_args(field.annotation)):
        # Python 3.10 takes tuple[int, ...] for a type, and then refuses to ask what it is a subclass of.
        if get_origin(candidate) is None and isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def is_list(field: FieldInfo) -> bool:
    """Whether a field holds a list of values or sections."""
    return tuple in (get_origin(candidate) for candidate in (field.annotation, *get_args(field.annotation)))


def meaning(location: Location) -> str | None:
    """What a key says, in the first line of its own docstring or its section's; None for a key that is not one."""
    field = dict(keys()).get(_dotted(location))
    if field is None:
        return None
    section = section_of(field)
    text = field.description or (section.__doc__ if section else None) or ""
    return text.strip().partition("\n")[0]


def names_in(location: Location) -> list[str]:
    """The names of the keys that stand directly in the section at `location`."""
    section = _dotted(location)
    return [name for parent, _, name in (key.rpartition(".") for key, _ in keys()) if parent == section]


def nearest(location: Location) -> Location | None:
    """The key that a mistyped one most likely means: first in its own section, then anywhere."""
    name, section = str(location[-1]), location[:-1]
    own = get_close_matches(name, names_in(section), n=1)
    if own:
        return (*section, own[0])
    anywhere = {key.rpartition(".")[2]: key for key, _ in keys()}
    match = get_close_matches(name, anywhere, n=1)
    return tuple(anywhere[match[0]].split(".")) if match else None


def _dotted(location: Location) -> str:
    return ".".join(part for part in location if isinstance(part, str))


# For each kind of pydantic's: what the file should hold (None: as pydantic says it), and how to write it.
_KINDS: dict[str, tuple[str | None, str]] = {
    "int_type": ("a whole number", "write digits, without quotes"),
    "float_type": ("a number", "write a number, without quotes"),
    "bool_type": ("true or false", "write true or false, without quotes"),
    "string_type": ("text", 'write text, in "quotes" where it looks like something else'),
    "string_pattern_mismatch": ("letters, digits, `_`, `.` and `-`", "leave every other character out"),
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


def mistakes(error: ValidationError, source: Source) -> list[ConfigError]:
    """One error for each mistake; a mistyped key is one, not an unknown key and a missing one."""
    details = error.errors()
    meant = {_key(near) for item in details if (near := _meant(item)) is not None}
    return [_mistake(item, source) for item in details if not _follows_from_another(item, meant)]


def _follows_from_another(item: ErrorDetails, meant: set[str]) -> bool:
    if item["type"] == "too_short":
        return bool(item["input"])  # pydantic counts a list's items without its mistaken ones
    return item["type"] == "missing" and _key(item["loc"]) in meant


def _meant(item: ErrorDetails) -> Location | None:
    return nearest(item["loc"]) if item["type"] == "extra_forbidden" else None


def _mistake(item: ErrorDetails, source: Source) -> ConfigError:
    location = item["loc"]
    if item["type"] == "extra_forbidden":
        return _unknown(location, source)
    key = _key(location)
    where = source.where(key)
    if item["type"] == "missing":
        return ConfigError(
            f"the key {str(location[-1])!r} is missing",
            where=where,
            found="nothing",
            expected=meaning(location),
            fix=f"add {key}; the files under configs/ are complete",
        )
    phrase, edit = _KINDS.get(item["type"], (None, "write such a value"))
    expected = phrase or item["msg"].removeprefix("Input should be ")
    return ConfigError(
        "a value is not what its key takes",
        where=where,
        found=f"{write_inline(item['input']):.200}",
        expected=f"{expected} or null" if _may_be_null(location) else expected,
        fix=f"{edit}. {meaning(location) or ''}".rstrip(),
    )


def _unknown(location: Location, source: Source) -> ConfigError:
    near = nearest(location)
    return ConfigError(
        f"unknown key {str(location[-1])!r}",
        where=source.where(_key(location)),
        found=_key(location),
        expected=_key(near) if near else f"one of {', '.join(names_in(location[:-1]))}",
        fix=f"write {_key(near)}" if near else "delete it; docs/reference/config.md has every key",
    )


def _may_be_null(location: Location) -> bool:
    name = ".".join(part for part in location if isinstance(part, str))
    field: Any = dict(keys()).get(name)
    return field is not None and isinstance(location[-1], str) and NoneType in get_args(field.annotation)


def _key(location: Location) -> str:
    return ".".join(str(part) for part in location)
