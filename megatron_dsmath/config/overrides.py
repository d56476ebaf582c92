"""`--set a.b=c`: one value of a run file, changed on the command line."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import yaml

from megatron_dsmath.config.dialect import Loader, write_inline
from megatron_dsmath.config.source import Source, problem
from megatron_dsmath.errors import ConfigError


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
