"""A run's directory as it was written: settings, metrics, status, checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from megatron_dsmath.config.source import read
from megatron_dsmath.errors import ConfigError, DataError

Row = dict[str, Any]


class Series(NamedTuple):
    """A metric over the steps at which it was measured; both arrays are of shape [measurements]."""

    steps: NDArray[np.int64]
    values: NDArray[np.float64]


@dataclass(frozen=True)
class Checkpoint:
    """One `checkpoints/step_N`: `whole` where its manifest is there and can be read."""

    step: int
    size_bytes: int
    whole: bool


@dataclass(frozen=True)
class RunRecord:
    """One run, as far as it has come."""

    folder: Path
    settings: Row
    """run.yaml as plain values."""
    settings_text: str
    """run.yaml as it stands."""
    rows: list[Row]
    """metrics.jsonl, steps ascending; at least one."""
    unfinished_row: bool
    """The last line was torn, as while it is being written; it is not among `rows`."""
    status: Row
    """STATUS.json; empty while there is none."""
    starts: list[Row]
    """logs/starts.jsonl: when, where and with how many processes the run was started or continued."""
    checkpoints: list[Checkpoint]

    def setting(self, key: str) -> Any:
        """The value of a dotted key of run.yaml, `schedule.steps`; None where it has none."""
        value: Any = self.settings
        for part in key.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        return value

    def weights(self) -> dict[str, float]:
        """The configured share of the tokens of each corpus; they add up to 1."""
        corpora = [_mapping(corpus) for corpus in self.setting("data.corpora") or []]
        weights = {str(corpus.get("name")): number(corpus.get("weight")) or 0.0 for corpus in corpora}
        return {name: weight / sum(weights.values()) for name, weight in weights.items() if weight}

    def corpora(self) -> list[str]:
        """Every corpus: those configured in their order, then others that the metrics name."""
        measured = (name for row in self.rows for name in _mapping(row.get("loss_by_corpus")))
        return list(dict.fromkeys([*self.weights(), *measured]))

    def series(self, metric: str, corpus: str | None = None) -> Series:
        """A metric, or one corpus' part of a `..._by_corpus` metric, where it was measured and is finite."""
        points = [(row["step"], value) for row in self.rows if (value := _measured(row, metric, corpus)) is not None]
        steps, values = zip(*points, strict=True) if points else ((), ())
        return Series(np.array(steps, dtype=np.int64), np.array(values, dtype=np.float64))

    def last(self, metric: str, corpus: str | None = None) -> float | None:
        """The newest value of a metric; None where it was never measured."""
        newest_first = (_measured(row, metric, corpus) for row in reversed(self.rows))
        return next((value for value in newest_first if value is not None), None)


def read_run(folder: Path) -> RunRecord:
    """Read a run's directory. Raises ConfigError where it is none, DataError where it has no whole metrics yet."""
    settings = folder / "run.yaml"
    if not settings.is_file():
        raise ConfigError(
            "this folder is no run's directory",
            where=settings,
            found="no such file",
            expected="the run.yaml that `dsmath train` writes",
            fix="name the `output` folder of a run",
        )
    rows, unfinished_row = _read_metrics(folder / "metrics.jsonl")
    return RunRecord(
        folder=folder,
        settings=read(settings).tree,
        settings_text=settings.read_text(encoding="utf-8"),
        rows=rows,
        unfinished_row=unfinished_row,
        status=_read_json(folder / "STATUS.json") or {},
        starts=_read_starts(folder / "logs" / "starts.jsonl"),
        checkpoints=sorted(_checkpoints(folder / "checkpoints"), key=lambda checkpoint: checkpoint.step),
    )


def _read_metrics(path: Path) -> tuple[list[Row], bool]:
    if not path.is_file():
        raise DataError("the run has no metrics", where=path, found="no such file", fix="let it finish its first step")
    rows: list[Row] = []
    *whole_lines, rest = path.read_bytes().split(b"\n")
    for number, line in enumerate(whole_lines, 1):
        rows.append(_row(line, f"{path}:{number}", rows[-1]["step"] if rows else 0))
    if not rows:
        raise DataError(
            "the run has no metrics",
            where=path,
            found=f"{len(rest)} bytes and no whole line",
            expected="a line a step",
            fix="let it finish its first step",
        )
    return rows, bool(rest)


def _row(line: bytes, where: str, previous_step: int) -> Row:
    row = _object(line)
    step = row.get("step") if row else None
    if row is None or not isinstance(step, int) or step <= previous_step:
        raise DataError(
            "a line of the metrics is not a step's row",
            where=where,
            found=f"{line[:80]!r}",
            expected=f'{{"step": {previous_step + 1}, ...}}, steps ascending',
            fix="remove the line, or restore the file",
        )
    return row


def _read_starts(path: Path) -> list[Row]:
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [start for line in lines if (start := _object(line)) is not None]


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
    """The value as a number; None where it is none, or not finite."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)
