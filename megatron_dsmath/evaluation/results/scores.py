"""The scores of an evaluation from its rows, and the table beside the paper's figures."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from math import comb, sqrt
from pathlib import Path
from typing import Any

from megatron_dsmath.evaluation.published import PUBLISHED
from megatron_dsmath.evaluation.rows import Row
from megatron_dsmath.grading.strict import is_correct

_NORMAL_95 = 1.959963984540054  # the normal distribution's 97.5th percentile
LONGEST_COMPARED = 200  # characters: programs and proofs are answers too, and comparing two takes milliseconds
_PARTS = ("level", "subject", "language")


def score_rows(rows: Sequence[Row], samples: int) -> dict[str, Any]:
    """The scores of one task: accuracies with their intervals, counts, and the accuracies of each part.

    `rows`: the samples of a problem are consecutive. With several samples, accuracy is their mean, and `pass_at` and
    `majority` are added. Rows without a verdict have no accuracy.
    """
    scores = {
        **_accuracy(rows, samples),
        "no_answer": sum(row["note"] == "no answer" for row in rows),
        "cut_off": sum(row["end"] == "length" for row in rows),
        "tool_calls": sum(row["tool_calls"] for row in rows),
        "programs": sum(len(row["programs"]) for row in rows),
        "program_errors": _count_programs(rows, lambda verdict: verdict not in ("ok", "timeout")),
        "program_timeouts": _count_programs(rows, lambda verdict: verdict == "timeout"),
        "grader_timeouts": sum(row["note"] == "timeout" for row in rows),
        "grader_errors": sum(row["note"] == "error" for row in rows),
        "no_verdict": sum(row["correct"] is None for row in rows),
        "graders_disagree": sum(row["correct"] != row["correct_as_the_paper"] for row in rows),
        "new_tokens": sum(row["new_tokens"] for row in rows),
    }
    if samples > 1 and "accuracy" in scores:
        problems = [list(group) for _, group in groupby(rows, lambda row: row["row"])]
        scores["pass_at"] = {str(k): pass_at(problems, k) for k in _powers_of_two(samples)}
        scores["majority"] = sum(map(majority_is_correct, problems)) / len(problems)
    for part in _PARTS:
        names = sorted({row[part] for row in rows} - {None})
        if names:
            scores[f"by_{part}"] = {
                name: _accuracy([row for row in rows if row[part] == name], samples) for name in names
            }
    return scores


def wilson_interval(correct: float, count: int) -> tuple[float, float]:
    """The 95% interval of a proportion (Wilson 1927); both ends in [0, 1]."""
    share, square = correct / count, _NORMAL_95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    half = _NORMAL_95 / (1 + square / count) * sqrt(share * (1 - share) / count + square / (4 * count**2))
    low = 0.0 if correct == 0 else centre - half  # exact: rounding would give a number near 0
    return low, 1.0 if correct == count else centre + half


def pass_at(problems: Sequence[Sequence[Row]], k: int) -> float:
    """The unbiased estimate of the share of problems with a correct one among `k` samples (Chen et al. 2021)."""
    shares = []
    for samples in problems:
        count, wrong = len(samples), sum(not row["correct"] for row in samples)
        shares.append(1 - comb(wrong, k) / comb(count, k))
    return sum(shares) / len(shares)


def majority_is_correct(samples: Sequence[Row]) -> bool:
    """Whether the most frequent answer is correct; of equally frequent answers, the first. No answer has no vote.

    Answers that the strict grader calls equal without algebra vote together: 0.5 and \\frac{1}{2}.
    """
    groups: list[list[Row]] = []
    for row in samples:
        if row["extracted"] is None:
            continue
        same = next((group for group in groups if _is_same_answer(group[0]["extracted"], row["extracted"])), None)
        if same is None:
            groups.append([row])
        else:
            same.append(row)
    return bool(groups) and bool(max(groups, key=len)[0]["correct"])


def comparison_table(results: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row per model, one column per task, in percent: this model by both graders, then the paper's models.

    The paper's figures are shown only for whole benchmarks that were asked without shots or with the paper's own.
    """
    tasks = results["tasks"]
    rows = [
        {"model": "this model, the paper's grader", **{task: _percent(tasks[task], "_as_the_paper") for task in tasks}},
        {"model": "this model, strict grader", **{task: _percent(tasks[task], "") for task in tasks}},
    ]
    whole = [task for task in tasks if task in PUBLISHED and results["limit"] is None]
    comparable = [task for task in whole if results["shots"][task] in ("none", "paper")]
    for model, figures in paper_table(results["protocol"]).items():
        if any(task in figures for task in comparable):
            cells = {task: f"{figures[task]:.1f}" if task in comparable and task in figures else "" for task in tasks}
            rows.append({"model": model, **cells})
    return rows


def paper_table(protocol: str) -> Mapping[str, Mapping[str, float]]:
    """The paper's percentages by model and task for a shipped protocol; empty for another one."""
    tables = json.loads(Path(__file__).with_name("paper_tables.json").read_text(encoding="utf-8"))["tables"]
    table: Mapping[str, Mapping[str, float]] = tables.get(protocol.removesuffix("-paper"), {"models": {}})["models"]
    return table


def _percent(scores: Mapping[str, Any], ending: str) -> str:
    if f"accuracy{ending}" not in scores:
        return "no verdict"
    low, high = scores[f"interval_95{ending}"]
    return f"{100 * scores[f'accuracy{ending}']:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def _is_same_answer(one: str, other: str) -> bool:
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


def _count_programs(rows: Sequence[Row], is_counted: Callable[[str], bool]) -> int:
    return sum(is_counted(program["verdict"]) for row in rows for program in row["programs"])


def _powers_of_two(limit: int) -> list[int]:
    return [1 << power for power in range(limit.bit_length()) if 1 << power <= limit]
