"""The `dsmath` command. Each verb is one small function that imports what it needs."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

from megatron_dsmath import __version__
from megatron_dsmath.cli import conversations, data, evaluation, models, runs
from megatron_dsmath.cli.arguments import Parser, Verb
from megatron_dsmath.errors import EXIT_DONE, DsmathError, show


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns its exit code (0 done, 1 the answer is no, 70 internal, 75 stopped, 78 refused)."""
    try:
        options = _parser().parse_args(arguments)
        verb: Verb = options.verb
        return verb(options)
    except DsmathError as error:
        return show(error)
    except BrokenPipeError:  # the reader of the output, such as `| head`, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # discards what is still buffered
        return EXIT_DONE


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="dsmath",
        description="Reproduce DeepSeekMath, from JSONL text to a trained model in a Hugging Face folder.",
        epilog="example: dsmath quickstart --out runs/quickstart",
    )
    parser.add_argument("--version", action="version", version=f"dsmath {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    for room in (runs, data, conversations, models, evaluation):
        room.add_verbs(verbs)
    return parser
