"""The keys a run file may have, read from the sections' own fields: for messages and for the generated reference."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from typing import get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from megatron_dsmath.config.run import RunConfig

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
