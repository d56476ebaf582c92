"""A run file as text: its values, and the line each of them stands on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.reader import ReaderError

from megatron_dsmath.config.dialect import Loader, write_inline
from megatron_dsmath.errors import ConfigError

Tree = dict[str, Any]


@dataclass
class Source:
    """The values of a run file as plain Python, where they came from, and what is wrong with the text itself."""

    path: Path
    tree: Tree = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    overridden: set[str] = field(default_factory=set)
    mistakes: list[ConfigError] = field(default_factory=list)

    def where(self, key: str) -> str:
        """The place a user has to edit for `key`: a line of the file, or the `--set` that won over it."""
        ancestors = [key]
        while "." in ancestors[-1]:
            ancestors.append(ancestors[-1].rpartition(".")[0])
        for ancestor in ancestors:
            if ancestor in self.overridden:
                return f"--set {ancestor}" if ancestor == key else f"--set {ancestor}: {key}"
        line = next((self.lines[ancestor] for ancestor in ancestors if ancestor in self.lines), None)
        return f"{self.path}:{line}: {key}" if line else f"{self.path}: {key}"


def read(path: str | Path) -> Source:
    """Read a run file; raise ConfigError where it is missing, is not YAML, or holds no keys.

    A key that stands twice does not hide the other mistakes: it is noted in the source's own.
    """
    source = Source(Path(path))
    text = _text(source.path)
    try:
        loader = Loader(text)
        node = loader.get_single_node()
        if node is not None:
            _note_lines(node, "", source)
        tree = loader.construct_document(node) if node is not None else None
    except (yaml.YAMLError, RecursionError) as error:
        line = _line_of(error, text)
        raise ConfigError(
            "the run file is not YAML",
            where=f"{path}:{line}" if line else path,
            found=problem(error),
            expected="lines of `key: value`, indented with spaces",
            fix="compare the line with a file under configs/",
        ) from None
    if not isinstance(tree, dict):
        raise ConfigError(
            "the run file holds no keys",
            where=path,
            found="an empty file" if tree is None else f"{write_inline(tree):.200}",
            expected="output, seed, model, data, ...",
            fix="start from a file under configs/",
        )
    source.tree = tree
    return source


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            "the run file cannot be read",
            where=path,
            found=error.strerror,
            expected="a YAML file",
            fix="name an existing run file, for example one under configs/",
        ) from None
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError(
            "the run file is not text in UTF-8",
            where=f"{path}:{line}",
            found=f"the byte 0x{raw[error.start]:02x}: {error.reason}",
            expected="YAML in UTF-8",
            fix="save the file as UTF-8",
        ) from None


def _line_of(error: Exception, text: str) -> int | None:
    if isinstance(error, ReaderError):
        return text.count("\n", 0, error.position) + 1
    mark = getattr(error, "problem_mark", None)
    return mark.line + 1 if mark else None


def problem(error: Exception) -> str:
    """What PyYAML did not understand, in one line."""
    if isinstance(error, RecursionError):
        return "brackets nested too deeply"
    if isinstance(error, ReaderError):
        return f"the character U+{error.character:04X}: {error.reason}"
    return getattr(error, "problem", None) or str(error)


def _note_lines(node: yaml.Node, key: str, source: Source) -> None:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            child = f"{key}.{index}" if key else str(index)
            source.lines[child] = item.start_mark.line + 1
            _note_lines(item, child, source)
    elif isinstance(node, yaml.MappingNode):
        for name, value in node.value:
            if isinstance(name, yaml.ScalarNode):
                name.tag = "tag:yaml.org,2002:str"  # a key is text, also where it looks like a number
            child = f"{key}.{name.value}" if key else str(name.value)
            line = name.start_mark.line + 1
            if child in source.lines:
                source.mistakes.append(_stands_twice(child, line, source))
                continue
            source.lines[child] = line
            _note_lines(value, child, source)


def _stands_twice(key: str, line: int, source: Source) -> ConfigError:
    return ConfigError(
        "a key stands twice",
        where=f"{source.path}:{line}: {key}",
        found=f"first on line {source.lines[key]}",
        expected="each key once",
        fix="delete one of them",
    )
