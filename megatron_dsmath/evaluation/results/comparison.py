"""This model among those of the paper's tables."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from megatron_dsmath.evaluation.published import PUBLISHED

_FILE = Path(__file__).with_name("paper_tables.json")
_THIS = "this model"


def compared(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a model, a column a task, in percent: this model by the paper's verdict and by ours, then the paper's.

    Only whole benchmarks are compared with the paper's; a part of one stands alone.
    """
    tasks = results["tasks"]
    rows = [
        {"model": f"{_THIS}, the paper's grader", **{task: _percent(tasks[task], "_as_the_paper") for task in tasks}},
        {"model": f"{_THIS}, strict grader", **{task: _percent(tasks[task], "") for task in tasks}},
    ]
    whole = [task for task in tasks if task in PUBLISHED and results["limit"] is None]
    for model, figures in paper_table(results["protocol"]).items():
        if any(task in figures for task in whole):
            shown = {task: f"{figures[task]:.1f}" if task in whole and task in figures else "" for task in tasks}
            rows.append({"model": model, **shown})
    return rows


def paper_table(protocol: str) -> Mapping[str, Mapping[str, float]]:
    """Model, task, percent: what the paper gives for a shipped protocol; nothing for one's own."""
    table: Mapping[str, Mapping[str, float]] = _tables()["tables"].get(protocol, {"models": {}})["models"]
    return table


@lru_cache(maxsize=1)
def _tables() -> Mapping[str, Any]:
    tables: Mapping[str, Any] = json.loads(_FILE.read_text(encoding="utf-8"))
    return tables


def _percent(figures: Mapping[str, Any], ending: str) -> str:
    if f"accuracy{ending}" not in figures:
        return "no verdict"
    low, high = figures[f"interval_95{ending}"]
    return f"{100 * figures[f'accuracy{ending}']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
