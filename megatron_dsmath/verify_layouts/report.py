"""The verdicts as a table, and below it what each layout that differs looks like."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict

from megatron_dsmath.errors import EXIT_ANSWER_IS_NO, EXIT_DONE
from megatron_dsmath.tables import print_table
from megatron_dsmath.verify_layouts.compare import Comparison
from megatron_dsmath.verify_layouts.diagnosis import KINDS

_COLUMNS = (
    "layout",
    "ranks",
    "loss",
    "gradient_norm",
    "gradient",
    "worst_gradient",
    "parameter",
    "worst_parameter",
    "verdict",
)
_DIFFERENCES = ("loss", "gradient_norm", "gradient", "parameter")


def report(comparisons: Iterable[Comparison], total: int, as_json: bool) -> int:
    """Print all of `comparisons`, telling on a terminal how many of about `total` are done; returns the exit code."""
    rows = []
    for done, row in enumerate(comparisons, start=1):
        rows.append(row)
        if sys.stderr.isatty():
            print(
                f"\r{done} of {max(done, total)}: {row.layout} {row.verdict}\x1b[K", end="", file=sys.stderr, flush=True
            )
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        print_table([_shown(row) for row in rows], _COLUMNS, False)
        _explain([row for row in rows if row.verdict == "differs"])
    return EXIT_ANSWER_IS_NO if any(row.verdict == "differs" for row in rows) else EXIT_DONE


def _shown(row: Comparison) -> dict[str, object]:
    values = asdict(row)
    short = {name: f"{values[name]:.1e}" for name in _DIFFERENCES if values[name] is not None}
    of_none = {f"worst_{name}": "" for name in ("gradient", "parameter") if not values[name]}
    return {**values, **short, **of_none}


def _explain(differing: list[Comparison]) -> None:
    for row in differing:
        print(f"{row.layout}: {KINDS[row.kind or 'failed']} [{row.kind}]")
        if row.first_parameter:
            print(f"  first parameter that differs: {row.first_parameter}")
        if row.evidence:
            print(f"  {row.evidence}")
