"""Reads YAML files, with the line of each key, and writes them."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.reader import ReaderError

from megatron_dsmath.errors import ConfigError

_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9]{0,17})", list("-+0123456789")),  # of 64 bits; a longer one is text and refused
    "float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class Loader(yaml.SafeLoader):
    """Refuses aliases and tags: no run needs them, and a few can expand to gigabytes or to themselves."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's own class attribute, filled below)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """As in PyYAML; raises ComposerError at an alias or a tag."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            name = "an alias (*name)" if isinstance(event, yaml.AliasEvent) else "a tag (!name)"
            raise ComposerError(None, None, f"found {name}; write the plain value", event.start_mark)
        return super().compose_node(parent, index)


class Dumper(yaml.SafeDumper):
    """Writes no aliases, and quotes text that a reader of YAML 1.1 or 1.2 would take for another type."""

    def ignore_aliases(self, data: Any) -> bool:
        """Always true: every value is written where it is used."""
        return True


def _represent_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML replaces Unicode's line ends (U+0085, U+2028) by spaces unless they are escaped in quotes.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


Dumper.add_representer(str, _represent_text)
for _name, (_pattern, _first) in _SCALARS.items():
    for _end in (Loader, Dumper):
        _end.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


def write(values: Any) -> str:
    """The values as a YAML file that `Loader` reads as equal values."""
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def write_inline(value: Any) -> str:
    """One value as a user writes it after `key: `."""
    text: str = yaml.dump(value, Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=2**31)
    return text.removesuffix("...\n").strip()


def lists_to_tuples(value: Any) -> Any:
    """The same values with tuples instead of lists, as frozen sections hold them."""
    if isinstance(value, dict):
        return {key: lists_to_tuples(item) for key, item in value.items()}
    return tuple(lists_to_tuples(item) for item in value) if isinstance(value, list) else value


Tree = dict[str, Any]


@dataclass
class Source:
    """The values of a YAML file as plain Python, the line or override of each, and mistakes of the text itself."""

    path: Path
    tree: Tree = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)
    overridden: set[str] = field(default_factory=set)
    mistakes: list[ConfigError] = field(default_factory=list)

    def where(self, key: str) -> str:
        """What a user has to edit for `key`: a line of the file, or the `--set` that replaced it."""
        ancestors = [key]
        while "." in ancestors[-1]:
            ancestors.append(ancestors[-1].rpartition(".")[0])
        for ancestor in ancestors:
            if ancestor in self.overridden:
                return f"--set {ancestor}" if ancestor == key else f"--set {ancestor}: {key}"
        line = next((self.lines[ancestor] for ancestor in ancestors if ancestor in self.lines), None)
        return f"{self.path}:{line}: {key}" if line else f"{self.path}: {key}"


def read(path: str | Path) -> Source:
    """Read a run file. Raises ConfigError when it is missing, is not YAML, or has no keys.

    A key that appears twice is added to the source's `mistakes`, so that it does not hide other mistakes.
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
            "the run file has no keys",
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
    """PyYAML's error in one line."""
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
                name.tag = "tag:yaml.org,2002:str"  # a key is text, also if it looks like a number
            child = f"{key}.{name.value}" if key else str(name.value)
            line = name.start_mark.line + 1
            if child in source.lines:
                source.mistakes.append(_repeated_key(child, line, source))
                continue
            source.lines[child] = line
            _note_lines(value, child, source)


def _repeated_key(key: str, line: int, source: Source) -> ConfigError:
    return ConfigError(
        "a key appears twice",
        where=f"{source.path}:{line}: {key}",
        found=f"first on line {source.lines[key]}",
        expected="each key once",
        fix="delete one of them",
    )
