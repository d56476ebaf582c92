"""Adds verbs to the command."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, NoReturn, TypeAlias

from megatron_dsmath.errors import UsageError

Verb = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """An argparse parser whose errors are UsageErrors; flags cannot be abbreviated."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        """Raise UsageError."""
        raise UsageError(message, where=self.prog, fix=f"{self.prog} --help")


Verbs: TypeAlias = "argparse._SubParsersAction[Parser]"


def add_group(verbs: Verbs, name: str, purpose: str) -> Verbs:
    """Add a group of verbs."""
    return verbs.add_parser(name, help=purpose, description=purpose).add_subparsers(required=True, metavar="VERB")


def add_verb(verbs: Verbs, name: str, function: Verb, example: str, *, table: bool = False) -> Parser:
    """Add a verb that calls `function`; its help is the function's docstring. `table`: the verb has `--json`."""
    purpose = (function.__doc__ or "").strip()
    verb = verbs.add_parser(name, help=purpose, description=purpose, epilog=f"example: {example}")
    verb.set_defaults(verb=function)
    if table:
        verb.add_argument("--json", action="store_true", help="print JSON instead of a table")
    return verb


def add_overrides(verb: Parser) -> None:
    """Add `--set`, which changes keys of the run file."""
    purpose = "change a key of the run file; repeatable"
    verb.add_argument("--set", action="append", default=[], metavar="a.b=c", help=purpose)
