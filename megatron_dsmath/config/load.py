"""A YAML file to a `RunConfig`, every mistake reported at once."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from megatron_dsmath.config.contradictions import RULES
from megatron_dsmath.config.layout_contradictions import Rule, world_contradictions
from megatron_dsmath.config.mistakes import Location, is_list, mistakes, section_of
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.config.source import Loader, Source, problem, read, write, write_inline
from megatron_dsmath.errors import ConfigError, raise_all


def override(source: Source, assignment: str) -> None:
    """Apply one `--set a.b=c`; the value is YAML (`--set schedule.drops=[]`). Raises ConfigError."""
    key, equals, text = assignment.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(
            "an override is not an assignment",
            where=f"--set {assignment}",
            found=assignment,
            expected="key=value",
            fix="for example --set schedule.steps=100",
        )
    try:
        value = yaml.load(text, Loader)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(
            "an override's value is not YAML",
            where=f"--set {key}",
            found=f"{text}: {problem(error)}",
            expected="a YAML value",
            fix="write one value, a [list], or text in quotes",
        ) from None
    *parents, last = names = key.split(".")
    node: Any = source.tree
    for depth, name in enumerate(parents):
        child = _child(node, name)
        if not isinstance(child, dict | list):
            raise _no_such_place(names, depth, node)
        node = child
    if isinstance(node, list):
        if _child(node, last) is None:
            raise _no_such_place(names, len(parents), node)
        node[int(last)] = value
    else:
        node[last] = value
    source.overridden.add(key)


def _child(node: Any, name: str) -> Any:
    if isinstance(node, list):
        return node[int(name)] if name.isdecimal() and int(name) < len(node) else None
    return node.get(name)


def _no_such_place(names: list[str], depth: int, node: Any) -> ConfigError:
    choices = [str(index) for index in range(len(node))] if isinstance(node, list) else list(node)
    child, before = _child(node, names[depth]), names[:depth]
    near = get_close_matches(names[depth], choices, n=1) if child is None else []
    return ConfigError(
        "an override names a place that is not in the run file",
        where=f"--set {'.'.join(names)}",
        found=f"{'.'.join(names[: depth + 1])} is {'absent' if child is None else f'{write_inline(child):.80}'}",
        expected=f"one of {', '.join(choices)}" if child is None else "a section or a list",
        fix=f"write {'.'.join([*before, *near, *names[depth + 1 :]])}"
        if near
        else "write the key as the file nests it",
    )


def load(path: str | Path, overrides: Sequence[str] = (), world_size: int | None = None) -> RunConfig:
    """Read a run file and apply each `a.b=c` of `overrides`; raise ConfigError, or Refusals with all mistakes.

    `world_size`: the number of processes, where it is known, so that the layout is checked against it too.
    """
    source = read(path)
    for assignment in overrides:
        try:
            override(source, assignment)
        except ConfigError as error:
            source.mistakes.append(error)
    run, found = _validate(source)
    found = source.mistakes + found
    for rule in RULES:
        found += _contradictions(rule, run, source)
    if world_size is not None and not found:
        found = [_placed(error, source) for error in world_contradictions(run, world_size)]
    raise_all(found)
    return run


def dump(run: RunConfig) -> str:
    """The run as YAML, every value written out, so that the file alone repeats the run."""
    return write(run.model_dump(mode="json"))


def _validate(source: Source) -> tuple[RunConfig, list[ConfigError]]:
    try:
        return RunConfig.model_validate(_frozen(source.tree)), []
    except ValidationError as error:
        bad = {item["loc"] for item in error.errors()}
        return _half_built(RunConfig, source.tree, bad), mistakes(error, source)


def _frozen(value: Any) -> Any:
    """The same values with tuples for lists, which is what frozen sections hold."""
    if isinstance(value, dict):
        return {key: _frozen(item) for key, item in value.items()}
    return tuple(_frozen(item) for item in value) if isinstance(value, list) else value


def _half_built(section: type[BaseModel], tree: Any, bad: set[Any], place: Location = ()) -> Any:
    """What can be built of a section without its mistaken keys, so that rules about the others can be judged."""
    values = {}
    for name, field in section.model_fields.items():
        here, inner = (*place, name), section_of(field)
        if not isinstance(tree, dict) or name not in tree or here in bad:
            continue
        if inner is not None and isinstance(tree[name], dict):
            values[name] = _half_built(inner, tree[name], bad, here)
        elif not any(location[: len(here)] == here for location in bad):
            value = _frozen(tree[name])
            values[name] = tuple(inner.model_construct(**item) for item in value) if inner and is_list(field) else value
    return section.model_construct(_fields_set=set(values), **values)


def _contradictions(rule: Rule, run: RunConfig, source: Source) -> list[ConfigError]:
    found = []
    try:
        for error in rule(run):
            found.append(_placed(error, source))
    except AttributeError:
        pass  # the rule needs one more value, which is missing or mistaken and reported already
    return found


def _placed(error: ConfigError, source: Source) -> ConfigError:
    """The same error, its key with the line of the file it stands on."""
    first, *others = str(error.where).split(", ")
    where = ", ".join([source.where(first), *others])
    return type(error)(error.what, where=where, found=error.found, expected=error.expected, fix=error.fix)
