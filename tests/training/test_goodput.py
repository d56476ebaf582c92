"""Goodput over restarts: every expected number is worked out by hand."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from megatron_dsmath.training import goodput
from megatron_dsmath.training.goodput import Goodput
from megatron_dsmath.training.run_directory import RunDirectory
from tests.support.corpora import small_run
from tests.support.ranks import run_ranks
from tests.training.ranks import read_rows, rows_of, train_run, train_until_killed

STARTS = (
    '{"time_unix": 1000.0, "step": 0, "rows_done_again": 0}\n'
    '{"time_unix": 1500.0, "step": 40, "rows_done_again": 7}\n'
    '{"time_unix": 1700.0, "step": 90, "rows_done_again": 5}\n'
    '{"time_unix": 18'
)


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path)
    directory.create()
    return directory


def test_it_counts_everything_since_the_first_start(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    (directory.logs / "starts.jsonl").write_text(STARTS)
    directory.metrics.write_text("".join(f'{{"step": {step}, "step_seconds": 4.0}}\n' for step in range(1, 101)))
    directory.saves.write_text(
        '{"step": 50, "seconds": 1.5}\n{"step": 50, "failed": "no space"}\n{"step": 100, "seconds": 2.5}\n'
    )
    monkeypatch.setattr(goodput.time, "time", lambda: 2000.0)
    found = Goodput.of(directory)
    counts = {"restarts": 2, "lost_steps": 12}
    assert found.facts() == {"goodput": 400 / 1000, **counts, "save_seconds": 4.0, "failed_saves": 1}
    found.useful_seconds += 100.0
    found.add_save(directory, 101, 3.0)
    assert found.facts() == {"goodput": 500 / 1000, **counts, "save_seconds": 7.0, "failed_saves": 1}
    assert read_rows(directory.saves)[-1] == {"step": 101, "seconds": 3.0, "time_unix": 2000.0}
    found.add_failed_save(directory, 101, "no space")
    assert found.facts()["failed_saves"] == Goodput.of(directory).failed_saves == 2


def test_a_run_that_never_started_has_none(directory: RunDirectory) -> None:
    facts = Goodput.of(directory).facts()
    assert (facts["restarts"], facts["lost_steps"], facts["save_seconds"]) == (0, 0, 0)


def test_a_killed_run_goes_on_counting(inputs: Path, tmp_path: Path) -> None:
    run = small_run(inputs, tmp_path, checkpoint__asynchronous=False)
    with pytest.raises(RuntimeError, match="rank 0 died"):
        run_ranks(1, train_until_killed, run, 5)
    run_ranks(1, train_run, run)
    rows = rows_of(tmp_path)
    assert [(row["restarts"], row["lost_steps"]) for row in rows] == [(0, 0)] * 3 + [(1, 2)] * 6
    useful = sum(row["step_seconds"] for row in rows)
    first_start = read_rows(tmp_path / "logs" / "starts.jsonl")[0]["time_unix"]
    assert 0 < rows[-1]["goodput"] < 1
    assert rows[-1]["goodput"] >= useful / (time.time() - first_start)  # it was written before now
    saves = read_rows(tmp_path / "logs" / "saves.jsonl")
    assert [save["step"] for save in saves] == [3, 6, 9]
    assert rows[-1]["save_seconds"] == pytest.approx(saves[0]["seconds"] + saves[1]["seconds"])  # fp64 sums
