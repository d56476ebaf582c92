"""A run file as text: its values, and the line each of them stands on."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from megatron_dsmath.errors import ConfigError

Tree = dict[str, Any]


class _Loader(yaml.SafeLoader):
    """PyYAML reads `4.2e-4` as a number and `1e-4` as text; YAML 1.2, and every user, reads both as numbers."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


@dataclass
class Source:
    """The values of a run file as plain Python, and where they came from."""

    path: Path
    tree: Tree
    lines: dict[str, int] = field(default_factory=dict)
    overridden: set[str] = field(default_factory=set)

    def where(self, key: str) -> str:
        """The place a user has to edit for `key`: a line of the file, or the `--set` that won over it."""
        if key in self.overridden:
            return f"--set {key}"
        parent = key
        while parent and parent not in self.lines:
            parent = parent.rpartition(".")[0]
        line = self.lines.get(parent)
        return f"{self.path}:{line}: {key}" if line else f"{self.path}: {key}"


def read(path: str | Path) -> Source:
    """Read a run file; raise ConfigError where it is missing, is not YAML, or names a key twice."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            "the run file cannot be read",
            where=path,
            found=error.strerror,
            expected="a YAML file",
            fix="name an existing run file, for example one under configs/",
        ) from None
    except UnicodeDecodeError as error:
        raise ConfigError(
            "the run file is not text", where=path, found=str(error), expected="YAML in UTF-8", fix="save it as UTF-8"
        ) from None
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        lines: dict[str, int] = {}
        if node is not None:
            _number_lines(node, "", path, lines)
        tree = loader.construct_document(node) if node is not None else None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise ConfigError(
            "the run file is not YAML",
            where=f"{path}:{mark.line + 1}" if mark else path,
            found=getattr(error, "problem", str(error)),
            expected="key: value",
            fix="compare the line with a file under configs/",
        ) from None
    finally:
        loader.dispose()
    if not isinstance(tree, dict):
        raise ConfigError(
            "the run file holds no keys",
            where=path,
            found=type(tree).__name__,
            expected="output, seed, model, data, ...",
            fix="start from a file under configs/",
        )
    return Source(path, tree, lines)


def _number_lines(node: yaml.Node, key: str, path: Path, lines: dict[str, int]) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            child = f"{key}.{index}" if key else str(index)
            lines[child] = item.start_mark.line + 1
            _number_lines(item, child, path, lines)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            child = f"{key}.{name.value}" if key else str(name.value)
            if child in lines:
                raise ConfigError(
                    "a key stands twice",
                    where=f"{path}:{name.start_mark.line + 1}: {child}",
                    found=f"first on line {lines[child]}",
                    expected="each key once",
                    fix="delete one of them",
                )
            lines[child] = name.start_mark.line + 1
            _number_lines(value, child, path, lines)


def override(source: Source, assignment: str) -> None:
    """Apply one `--set a.b=c`; the value is YAML (`--set schedule.drops=[]`)."""
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
        value = yaml.load(text, _Loader)  # noqa: S506  (a SafeLoader with one more number format)
    except yaml.YAMLError as error:
        raise ConfigError(
            "an override's value is not YAML",
            where=f"--set {key}",
            found=text,
            expected="a YAML value",
            fix=f"quote it: {getattr(error, 'problem', error)}",
        ) from None
    *parents, last = key.split(".")
    node: Any = source.tree
    for depth, name in enumerate(parents):
        child = _child(node, name)
        if not isinstance(child, dict | list):
            raise _no_such_place(key, ".".join(parents[: depth + 1]), child)
        node = child
    if isinstance(node, list):
        if not last.isdigit() or int(last) >= len(node):
            raise _no_such_place(key, ".".join(parents), node)
        node[int(last)] = value
    else:
        node[last] = value
    source.overridden.add(key)


def _child(node: Any, name: str) -> Any:
    if isinstance(node, list):
        return node[int(name)] if name.isdigit() and int(name) < len(node) else None
    return node.get(name)


def _no_such_place(key: str, parent: str, found: Any) -> ConfigError:
    return ConfigError(
        "an override names a place that is not in the run file",
        where=f"--set {key}",
        found=f"{parent} is {'absent' if found is None else f'{found!r:.80}'}",
        expected="a section or list of the run file",
        fix="write the key as the run file nests it",
    )
