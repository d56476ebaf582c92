"""Loads a run file as a `RunConfig` and reports all mistakes at once."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from megatron_dsmath.config.contradictions import RULES
from megatron_dsmath.config.layout_contradictions import Rule, world_contradictions
from megatron_dsmath.config.mistakes import Location, is_list, section_of, validation_errors
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.config.source import Loader, Source, lists_to_tuples, problem, read, write, write_inline
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
            "the value of an override is not YAML",
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
            raise _unknown_key(names, depth, node)
        node = child
    if isinstance(node, list):
        if _child(node, last) is None:
            raise _unknown_key(names, len(parents), node)
        node[int(last)] = value
    else:
        node[last] = value
    source.overridden.add(key)


def _child(node: Any, name: str) -> Any:
    if isinstance(node, list):
        return node[int(name)] if name.isdecimal() and int(name) < len(node) else None
    return node.get(name)


def _unknown_key(names: list[str], depth: int, node: Any) -> ConfigError:
    choices = [str(index) for index in range(len(node))] if isinstance(node, list) else list(node)
    child, before = _child(node, names[depth]), names[:depth]
    nearest = get_close_matches(names[depth], choices, n=1) if child is None else []
    return ConfigError(
        "an override names a key that is not in the run file",
        where=f"--set {'.'.join(names)}",
        found=f"{'.'.join(names[: depth + 1])} is {'absent' if child is None else f'{write_inline(child):.80}'}",
        expected=f"one of {', '.join(choices)}" if child is None else "a section or a list",
        fix=f"write {'.'.join([*before, *nearest, *names[depth + 1 :]])}"
        if nearest
        else "write the key as it is nested in the file",
    )


def load(path: str | Path, overrides: Sequence[str] = (), world_size: int | None = None) -> RunConfig:
    """Read a run file and apply each `a.b=c` of `overrides`.

    `world_size`: the number of processes, if known; the layout is then checked against it. Raises ConfigError, or
    Refusals with all mistakes.
    """
    source = read(path)
    for assignment in overrides:
        try:
            override(source, assignment)
        except ConfigError as error:
            source.mistakes.append(error)
    run, invalid = _validate(source)
    errors = source.mistakes + invalid
    for rule in RULES:
        errors += _contradictions(rule, run, source, is_complete=not invalid)
    if world_size is not None and not errors:
        errors = [_located(error, source) for error in world_contradictions(run, world_size)]
    raise_all(errors)
    return run


def dump(run: RunConfig) -> str:
    """The run as a YAML file, which alone repeats the run; optional keys at their default are left out."""
    return write(run.model_dump(mode="json", exclude_defaults=True))


def _validate(source: Source) -> tuple[RunConfig, list[ConfigError]]:
    """The run, or what can be built of it, and the errors."""
    try:
        return RunConfig.model_validate(lists_to_tuples(source.tree)), []
    except ValidationError as error:
        invalid = {item["loc"] for item in error.errors()}
        return _partial_section(RunConfig, source.tree, invalid), validation_errors(error, source)


def _partial_section(section: type[BaseModel], tree: Any, invalid: set[Location], location: Location = ()) -> Any:
    """A section without its invalid keys, so that the rules about the others can be checked."""
    values = {}
    for name, field in section.model_fields.items():
        key, inner = (*location, name), section_of(field)
        if not isinstance(tree, dict) or name not in tree or key in invalid:
            continue
        if inner is not None and isinstance(tree[name], dict):
            values[name] = _partial_section(inner, tree[name], invalid, key)
        elif not any(other[: len(key)] == key for other in invalid):
            value = lists_to_tuples(tree[name])
            if inner and is_list(field) and value:
                value = tuple(inner.model_construct(**item) for item in value)
            values[name] = value
    partial = section.model_construct(_fields_set=set(values), **values)
    for name in section.model_fields.keys() - values.keys() & (tree.keys() if isinstance(tree, dict) else set()):
        partial.__dict__.pop(name, None)  # a default does not replace an invalid value
    return partial


def _contradictions(rule: Rule, run: RunConfig, source: Source, is_complete: bool) -> list[ConfigError]:
    errors = []
    try:
        for error in rule(run):
            errors.append(_located(error, source))
    except AttributeError:
        if is_complete:
            raise  # a fault of the rule
        # else the rule needs a value that is missing or invalid, which is reported already
    return errors


def _located(error: ConfigError, source: Source) -> ConfigError:
    """The same error with the line of its key."""
    first, *others = str(error.where).split(", ")
    where = ", ".join([source.where(first), *others])
    return type(error)(error.what, where=where, found=error.found, expected=error.expected, fix=error.fix)
