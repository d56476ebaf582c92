"""The figures of one task from its rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from itertools import groupby
from math import comb, sqrt
from pathlib import Path
from typing import Any

from megatron_dsmath.evaluation.published import PUBLISHED
from megatron_dsmath.evaluation.rows import Row
from megatron_dsmath.grading.strict import is_correct

_FILE = Path(__file__).with_name("paper_tables.json")
_THIS = "this model"


def compared(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """A row a model, a column a task, in percent: this model by the paper's verdict and by ours, then the paper's.

    The paper's figures are shown only for whole benchmarks that were asked without shots or with the paper's own.
    """
    tasks = results["tasks"]
    rows = [
        {"model": f"{_THIS}, the paper's grader", **{task: _percent(tasks[task], "_as_the_paper") for task in tasks}},
        {"model": f"{_THIS}, strict grader", **{task: _percent(tasks[task], "") for task in tasks}},
    ]
    whole = [task for task in tasks if task in PUBLISHED and results["limit"] is None]
    whole = [task for task in whole if results["shots"][task] in ("none", "paper")]
    for model, figures in paper_table(results["protocol"]).items():
        if any(task in figures for task in whole):
            shown = {task: f"{figures[task]:.1f}" if task in whole and task in figures else "" for task in tasks}
            rows.append({"model": model, **shown})
    return rows


def paper_table(protocol: str) -> Mapping[str, Mapping[str, float]]:
    """Model, task, percent: the paper's figures for a shipped protocol; nothing for another one."""
    name = protocol.removesuffix("-paper")
    table: Mapping[str, Mapping[str, float]] = _tables()["tables"].get(name, {"models": {}})["models"]
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


_NORMAL_95 = 1.959963984540054  # the normal distribution's 97.5th percentile
LONGEST_COMPARED = 200  # characters: programs and proofs are answers too, and each pair would take milliseconds
_PARTS = ("level", "subject", "language")


def summary(rows: Sequence[Row], samples: int) -> dict[str, Any]:
    """Accuracy with its interval, by our verdict and the paper's, what went wrong, and the same by part.

    `rows`: of one task, the samples of a problem together. With more samples than one, accuracy is their mean, and
    `pass_at` and `majority` stand beside it. Where nobody judged, there is no accuracy.
    """
    figures = {
        **_accuracy(rows, samples),
        "no_answer": sum(row["note"] == "no answer" for row in rows),
        "cut_off": sum(row["end"] == "length" for row in rows),
        "tool_calls": sum(row["tool_calls"] for row in rows),
        "programs": sum(len(row["programs"]) for row in rows),
        "program_errors": _programs_that(rows, lambda verdict: verdict not in ("ok", "timeout")),
        "program_timeouts": _programs_that(rows, lambda verdict: verdict == "timeout"),
        "grader_timeouts": sum(row["note"] == "timeout" for row in rows),
        "grader_errors": sum(row["note"] == "error" for row in rows),
        "no_verdict": sum(row["correct"] is None for row in rows),
        "graders_disagree": sum(row["correct"] != row["correct_as_the_paper"] for row in rows),
        "new_tokens": sum(row["new_tokens"] for row in rows),
    }
    if samples > 1 and "accuracy" in figures:
        problems = list(_problems(rows))
        figures["pass_at"] = {str(k): pass_at(problems, k) for k in _powers_of_two(samples)}
        figures["majority"] = sum(map(majority_is_right, problems)) / len(problems)
    for part in _PARTS:
        names = sorted({row[part] for row in rows} - {None})
        if names:
            figures[f"by_{part}"] = {
                name: _accuracy([row for row in rows if row[part] == name], samples) for name in names
            }
    return figures


def wilson_interval(correct: float, count: int) -> tuple[float, float]:
    """The 95% interval of a proportion (Wilson 1927); both in [0, 1]."""
    share, square = correct / count, _NORMAL_95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _NORMAL_95 / (1 + square / count) * sqrt(share * (1 - share) / count + square / (4 * count**2))
    low = 0.0 if correct == 0 else centre - half  # as algebra has it, and rounding does not
    return low, 1.0 if correct == count else centre + half


def pass_at(problems: Sequence[Sequence[Row]], k: int) -> float:
    """The share of problems of which one of `k` samples at least is right, unbiased (Chen et al. 2021)."""
    shares = []
    for samples in problems:
        count, wrong = len(samples), sum(not row["correct"] for row in samples)
        shares.append(1 - comb(wrong, k) / comb(count, k))
    return sum(shares) / len(shares)


def majority_is_right(samples: Sequence[Row]) -> bool:
    """Whether the answer given most often is right; of several, the one given first. No answer is no vote.

    Answers that our grader calls equal vote together: 0.5 and \\frac{1}{2}. It is not asked where it needs algebra.
    """
    groups: list[list[Row]] = []
    for row in samples:
        if row["extracted"] is None:
            continue
        alike = next((group for group in groups if _same_answer(group[0]["extracted"], row["extracted"])), None)
        if alike is None:
            groups.append([row])
        else:
            alike.append(row)
    return bool(groups) and bool(max(groups, key=len)[0]["correct"])


def _same_answer(one: str, other: str) -> bool:
    if "".join(one.split()) == "".join(other.split()):
        return True
    return max(len(one), len(other)) <= LONGEST_COMPARED and is_correct(one, other, lambda *_: False)


def _accuracy(rows: Sequence[Row], samples: int) -> dict[str, Any]:
    problems = len(rows) // samples
    if any(row["correct"] is None for row in rows):
        return {"problems": problems}
    correct, as_the_paper = (sum(row[name] for row in rows) / samples for name in ("correct", "correct_as_the_paper"))
    return {
        "problems": problems,
        "accuracy": correct / problems,
        "interval_95": wilson_interval(correct, problems),
        "accuracy_as_the_paper": as_the_paper / problems,
        "interval_95_as_the_paper": wilson_interval(as_the_paper, problems),
    }


def _problems(rows: Sequence[Row]) -> list[list[Row]]:
    return [list(samples) for _, samples in groupby(rows, lambda row: row["row"])]


def _programs_that(rows: Sequence[Row], chosen: Callable[[str], bool]) -> int:
    programs: list[Mapping[str, str]] = [program for row in rows for program in row["programs"]]
    return sum(chosen(program["verdict"]) for program in programs)


def _powers_of_two(limit: int) -> list[int]:
    return [1 << power for power in range(limit.bit_length()) if 1 << power <= limit]
