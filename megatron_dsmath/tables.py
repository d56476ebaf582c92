"""Prints the results of a command as a table or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any


def print_table(rows: Sequence[Any], columns: Sequence[str], as_json: bool) -> None:
    """Print `rows` (dataclasses or mappings) as a table of `columns`, or as a JSON list with all their fields."""
    values = [_mapping(row) for row in rows]
    if as_json:
        print(json.dumps(values, default=str, indent=1, ensure_ascii=False))
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE)
    for column in columns:
        table.add_column(column.replace("_", " "), overflow="fold")
    for value in values:
        table.add_row(*(_text(value[column]) for column in columns))
    console = Console()
    if not console.is_terminal:  # a pipe has no width: print every value in full
        console.width = 10_000
    console.print(table)


def print_facts(facts: Any, as_json: bool) -> None:
    """Print the fields of a dataclass or mapping, one per line, or as a JSON object."""
    values = _mapping(facts)
    if as_json:
        print(json.dumps(values, default=str, indent=1, ensure_ascii=False))
        return
    width = max(len(name) for name in values) + 2
    for name, value in values.items():
        print(f"{name.replace('_', ' '):<{width}}{_text(value)}")


def _mapping(row: Any) -> Mapping[str, Any]:
    if is_dataclass(row) and not isinstance(row, type):
        return asdict(row)
    assert isinstance(row, Mapping)
    return row


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, tuple | list):
        return ", ".join(_text(item) for item in value)
    return str(value) if not isinstance(value, Path) else value.as_posix()
