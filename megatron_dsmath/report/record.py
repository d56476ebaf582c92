"""The content of a run's directory: settings, metrics, status, checkpoints."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_dsmath.config.phases import Phase, phases
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.config.source import lists_to_tuples, read
from megatron_dsmath.errors import ConfigError, DataError

Row = dict[str, Any]


class Series(NamedTuple):
    """A metric over the steps at which it was measured; both arrays are of shape [measurements]."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]

    def smoothed(self) -> NDArray[np.float64]:
        """The mean of the last `smoothing_window` measurements at each of them, fewer at the start: [measurements]."""
        window = smoothing_window(len(self.values))
        sums = np.concatenate(([0.0], np.cumsum(self.values)))
        ends = np.arange(1, len(self.values) + 1)
        starts = np.maximum(ends - window, 0)
        return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def smoothing_window(measurements: int) -> int:
    """How many measurements a smoothed value is the mean of: a fortieth of the run, at most 50."""
    return min(max(1, measurements // 40), 50)


@dataclass(frozen=True)
class Checkpoint:
    """One `checkpoints/step_N`. `whole`: its manifest exists and can be read."""

    step: int
    size_bytes: int
    whole: bool


@dataclass(frozen=True)
class RunRecord:
    """The record of one run so far."""

    folder: Path
    settings: Row  # run.yaml as Python values
    settings_text: str  # run.yaml as text
    rows: list[Row]  # metrics.jsonl, with ascending steps and at least one row
    unfinished_row: bool  # the last line of metrics.jsonl has no end yet, and is not in `rows`
    status: Row  # STATUS.json; empty if there is none
    starts: list[Row]  # logs/starts.jsonl: time, host and number of processes of each start
    checkpoints: list[Checkpoint]

    def setting(self, key: str) -> Any:
        """The value of a dotted key of run.yaml, such as `schedule.steps`; None if it is missing."""
        value: Any = self.settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def phases(self) -> tuple[Phase, ...]:
        """The phases of the run; empty if run.yaml is not one of this version."""
        try:
            return phases(RunConfig.model_validate(lists_to_tuples(self.settings)))
        except ValueError:  # also pydantic's ValidationError
            return ()

    def weights(self) -> dict[str, float]:
        """The planned share of the tokens so far for each corpus; they add up to 1."""
        planned, last_step = dict[str, float](), int(self.rows[-1]["step"])
        every = self.phases()
        for phase in every if len(every) > 1 else ():
            tokens = phase.tokens_per_step * max(0, min(last_step, phase.end_step) - phase.first_step)
            for name, weight in phase.weights.items():
                planned[name] = planned.get(name, 0.0) + tokens * weight / sum(phase.weights.values())
        if planned:
            return {name: tokens / sum(planned.values()) for name, tokens in planned.items()}
        corpora = [_mapping(corpus) for corpus in self.setting("data.corpora") or []]
        weights = {str(corpus.get("name")): number(corpus.get("weight")) or 0.0 for corpus in corpora}
        return {name: weight / sum(weights.values()) for name, weight in weights.items() if weight}

    def corpora(self) -> list[str]:
        """The names of all corpora: those configured, in their order, then others in the metrics."""
        measured = (name for row in self.rows for name in _mapping(row.get("loss_by_corpus")))
        return list(dict.fromkeys([*self.weights(), *measured]))

    def series(self, metric: str, corpus: str | None = None) -> Series:
        """The finite measurements of a metric, or of one corpus in a `..._by_corpus` metric."""
        points = [(row["step"], value) for row in self.rows if (value := _measured(row, metric, corpus)) is not None]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return Series(np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64))

    def last(self, metric: str, corpus: str | None = None) -> float | None:
        """The last finite value of a metric; None if there is none."""
        newest_first = (_measured(row, metric, corpus) for row in reversed(self.rows))
        return next((value for value in newest_first if value is not None), None)

    def tokens_by_corpus(self) -> dict[str, int]:
        """The tokens read of each corpus so far; empty if the run does not count them."""
        counts = {corpus: self.last("tokens_by_corpus", corpus) for corpus in self.corpora()}
        return {corpus: int(tokens) for corpus, tokens in counts.items() if tokens is not None}

    def achieved_shares(self) -> dict[str, float]:
        """Each corpus' share of the tokens so far; they add up to 1. Empty if the run does not count them.

        For conversations, the shares of each grouping (`kind/...`, `language/...`, `source/...`) add up to 1.
        """
        tokens = self.tokens_by_corpus()
        groupings = {corpus: corpus.rpartition("/")[0] for corpus in tokens}
        totals = Counter[str]()
        for corpus, count in tokens.items():
            totals[groupings[corpus]] += count
        return {corpus: count / total for corpus, count in tokens.items() if (total := totals[groupings[corpus]])}


def read_run(folder: Path) -> RunRecord:
    """Read a run's directory. Raises ConfigError without a run.yaml, DataError without metrics."""
    settings = folder / "run.yaml"
    if not settings.is_file():
        raise ConfigError(
            "this folder is not a run's directory",
            where=settings,
            found="no such file",
            expected="the run.yaml that `dsmath train` writes",
            fix="name the `output` folder of a run",
        )
    rows, unfinished_row = _read_metrics(folder / "metrics.jsonl")
    starts = folder / "logs" / "starts.jsonl"
    lines = starts.read_bytes().splitlines() if starts.is_file() else []
    return RunRecord(
        folder=folder,
        settings=read(settings).tree,
        settings_text=settings.read_text(encoding="utf-8"),
        rows=rows,
        unfinished_row=unfinished_row,
        status=_read_json(folder / "STATUS.json") or {},
        starts=[start for line in lines if (start := _object(line)) is not None],
        checkpoints=sorted(_checkpoints(folder / "checkpoints"), key=lambda checkpoint: checkpoint.step),
    )


def _read_metrics(path: Path) -> tuple[list[Row], bool]:
    exists, rows = path.is_file(), list[Row]()
    *complete_lines, rest = (path.read_bytes() if exists else b"").split(b"\n")
    for number, line in enumerate(complete_lines, 1):
        rows.append(_row(line, f"{path}:{number}", rows[-1]["step"] if rows else 0))
    if not rows:
        raise DataError(
            "the run has no metrics",
            where=path,
            found=f"{len(rest)} bytes without the end of a line" if exists else "no such file",
            expected="one line per step",
            fix="let it finish its first step",
        )
    return rows, bool(rest)


def _row(line: bytes, where: str, previous_step: int) -> Row:
    row = _object(line) or {}
    step = row.get("step")
    if not isinstance(step, int) or step <= previous_step:
        raise DataError(
            "a line of the metrics is not the row of a step",
            where=where,
            found=f"{line[:80]!r}",
            expected=f'{{"step": {previous_step + 1}, ...}}, with ascending steps',
            fix="remove the line, or restore the file",
        )
    return row


def _read_json(path: Path) -> Row | None:
    return _object(path.read_bytes()) if path.is_file() else None


def _object(text: bytes) -> Row | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _checkpoints(folder: Path) -> Iterator[Checkpoint]:
    for path in folder.glob("step_*"):
        step = path.name.removeprefix("step_")
        if step.isdecimal() and path.is_dir():
            size_bytes = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
            yield Checkpoint(int(step), size_bytes, whole=_read_json(path / "MANIFEST.json") is not None)


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _measured(row: Row, metric: str, corpus: str | None) -> float | None:
    value = row.get(metric)
    return number(value if corpus is None else _mapping(value).get(corpus))


def number(value: object) -> float | None:
    """The value as a float; None if it is not a number, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
