"""A YAML file to a `RunConfig`, every mistake reported at once."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from megatron_dsmath.config.contradictions import RULES, world_contradictions
from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.config.source import Source, Tree, override, read
from megatron_dsmath.errors import ConfigError, Refusals


def load(path: str | Path, overrides: Sequence[str] = (), world_size: int | None = None) -> RunConfig:
    """Read a run file and apply each `a.b=c` of `overrides`; raise ConfigError, or Refusals with all mistakes.

    `world_size`: the number of processes, where it is known, so that the layout is checked against it too.
    """
    source = read(path)
    for assignment in overrides:
        override(source, assignment)
    run, mistakes = _validate(source)
    for rule in RULES:
        try:
            mistakes += [_placed(error, source) for error in rule(run)]
        except (AttributeError, TypeError):
            continue  # the rule needs a value that is missing or mistaken, which is reported already
    if world_size is not None and not mistakes:
        mistakes += [_placed(error, source) for error in world_contradictions(run, world_size)]
    if mistakes:
        raise mistakes[0] if len(mistakes) == 1 else Refusals(mistakes)
    return run


def dump(run: RunConfig) -> str:
    """The run as YAML, every value written out, so that the file alone repeats the run."""
    return yaml.safe_dump(run.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=120)


def _validate(source: Source) -> tuple[RunConfig, list[ConfigError]]:
    try:
        # JSON, because pydantic's strict mode takes a list for a tuple there, and in Python it does not.
        return RunConfig.model_validate_json(json.dumps(source.tree, default=str)), []
    except ValidationError as error:
        mistakes = [_mistake(item, source) for item in error.errors()]
        bad = {tuple(item["loc"]) for item in error.errors()}
        return _half_built(RunConfig, source.tree, bad, ()), mistakes


def _half_built(section: type[BaseModel], tree: Any, bad: set[tuple[Any, ...]], place: tuple[Any, ...]) -> Any:
    """What can be built of a section without its mistaken keys, so that rules about the others can be judged."""
    values: Tree = {}
    for name, field in section.model_fields.items():
        here = (*place, name)
        if not isinstance(tree, dict) or name not in tree or here in bad:
            continue
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            values[name] = _half_built(annotation, tree[name], bad, here)
        elif not any(item[: len(here)] == here for item in bad):
            values[name] = _plain(field, tree[name])
    return section.model_construct(_fields_set=set(values), **values)


def _plain(field: FieldInfo, value: Any) -> Any:
    inner = get_args(field.annotation)
    if isinstance(value, list) and inner and isinstance(inner[0], type) and issubclass(inner[0], BaseModel):
        return tuple(inner[0].model_construct(**item) for item in value)
    return value


def _placed(error: ConfigError, source: Source) -> ConfigError:
    """The same error, its key with the line of the file it stands on."""
    keys = str(error.where).split(", ")
    where = ", ".join([source.where(keys[0]), *keys[1:]])
    return type(error)(error.what, where=where, found=error.found, expected=error.expected, fix=error.fix)


def _mistake(item: Any, source: Source) -> ConfigError:
    key = ".".join(str(part) for part in item["loc"])
    name, where = str(item["loc"][-1]), source.where(key)
    if item["type"] == "extra_forbidden":
        near = _nearest(name, key.rpartition(".")[0])
        return ConfigError(
            f"unknown key {name!r}",
            where=where,
            found=key,
            expected=f"{near}" if near else "a key of docs/reference/config.md",
            fix=f"write {near}" if near else "delete it",
        )
    if item["type"] == "missing":
        return ConfigError(
            f"the key {name!r} is missing",
            where=source.where(key),
            found="nothing",
            expected=_meaning(item["loc"]),
            fix=f"add {key}; configs/ has complete files",
        )
    return ConfigError(
        "a value is not what its key takes",
        where=where,
        found=f"{item['input']!r:.200}",
        expected=item["msg"].removeprefix("Input should be "),
        fix=f"{key} is: {_meaning(item['loc'])}",
    )


def _fields(section: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every key of a run file with its dotted name; a list's items stand under their list's name."""
    for name, field in section.model_fields.items():
        key = f"{prefix}{name}"
        yield key, field
        candidates = [field.annotation, *get_args(field.annotation)]
        for inner in candidates:
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from _fields(inner, f"{key}.")


def keys() -> dict[str, FieldInfo]:
    """Every key a run file may have, dotted, with its type and meaning; the generated reference lists these."""
    return dict(_fields(RunConfig))


def _meaning(location: Sequence[Any]) -> str:
    key = ".".join(str(part) for part in location if not isinstance(part, int))
    known = keys().get(key)
    if known is None:
        return "see docs/reference/config.md"
    annotation = known.annotation
    section = annotation.__doc__ if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None
    return (known.description or section or "a section").strip().splitlines()[0]


def _nearest(name: str, section: str) -> str | None:
    """The known key a mistyped one most likely means: first in its own section, then anywhere."""
    section = ".".join(part for part in section.split(".") if part and not part.isdigit())
    own = {key.rpartition(".")[2]: key for key in keys() if key.rpartition(".")[0] == section}
    everywhere = {key.rpartition(".")[2]: key for key in keys()}
    for choices in (own, everywhere):
        match = get_close_matches(name, choices, n=1, cutoff=0.6)
        if match:
            return choices[match[0]]
    return None
