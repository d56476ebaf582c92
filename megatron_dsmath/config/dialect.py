"""The YAML a run file is written in: the plain values of YAML 1.2, and each value where it is used.

PyYAML reads YAML 1.1, in which `010` is 8, `1:30` is 90, `no` is false, and `1e-4` is text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml
from yaml.composer import ComposerError

_SCALARS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(?:0|[1-9][0-9]{0,17})", list("-+0123456789")),  # of 64 bits; a longer one is text, and refused
    "float": (
        r"[-+]?(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


class Loader(yaml.SafeLoader):
    """Refuses aliases and tags: a run needs neither, and a few of them can stand for gigabytes or for themselves."""

    yaml_implicit_resolvers = {}  # noqa: RUF012  (PyYAML's own class attribute, filled below)

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose as PyYAML does; raise ComposerError at an alias or a tag."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            name = "an alias (*name)" if isinstance(event, yaml.AliasEvent) else "a tag (!name)"
            raise ComposerError(None, None, f"found {name}; write the plain value", event.start_mark)
        return super().compose_node(parent, index)


class Dumper(yaml.SafeDumper):
    """Writes no aliases, and quotes what a reader of YAML 1.1 or 1.2 would take for something else than text."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write every value where it is used."""
        return True


def _represent_text(dumper: Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML folds the line ends of Unicode (U+0085, U+2028) into spaces unless they are escaped in quotes.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


Dumper.add_representer(str, _represent_text)
for _name, (_pattern, _first) in _SCALARS.items():
    for _end in (Loader, Dumper):
        _end.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(f"^(?:{_pattern})$"), _first)


def write(values: Any) -> str:
    """The values as a file that `Loader` reads back equal, whatever text they hold."""
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=120)


def write_inline(value: Any) -> str:
    """One value as a user would write it after `key: `."""
    text: str = yaml.dump(value, Dumper=Dumper, default_flow_style=True, allow_unicode=True, width=2**31)
    return text.removesuffix("...\n").strip()
