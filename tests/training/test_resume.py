"""A run that is killed and started again equals an undisturbed run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.corpora import small_run
from tests.support.ranks import run_ranks
from tests.training.ranks import LAYOUTS, numbers_of, read_rows, rows_of, train_run, train_until_killed


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_run_killed_between_two_checkpoints_ends_bitwise_like_an_undisturbed_one(
    layout: str, inputs: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    ranks, overrides = LAYOUTS[layout]
    run = small_run(inputs, tmp_path, **overrides)  # saves after steps 3, 6 and 9
    with pytest.raises(RuntimeError, match="rank 0 died"):
        run_ranks(ranks, train_until_killed, run, 5)
    before = rows_of(tmp_path)
    assert [row["step"] for row in before] == [1, 2, 3, 4, 5]

    run_ranks(ranks, train_run, run)
    whole = numbers_of(rows_of(undisturbed(layout)))
    assert numbers_of(rows_of(tmp_path)) == whole
    assert [row["step"] for row in whole] == list(range(1, 10))
    assert read_rows(tmp_path / "logs" / "metrics_before_start_1.jsonl") == before[3:]
    assert numbers_of(before) == whole[:5]
    starts = read_rows(tmp_path / "logs" / "starts.jsonl")
    assert [(start["step"], start["rows_done_again"]) for start in starts] == [(0, 0), (3, 2)]


def test_a_run_killed_before_its_first_checkpoint_starts_from_scratch(
    inputs: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    run = small_run(inputs, tmp_path)
    with pytest.raises(RuntimeError, match="rank 0 died"):
        run_ranks(1, train_until_killed, run, 2)
    run_ranks(1, train_run, run)
    assert numbers_of(rows_of(tmp_path)) == numbers_of(rows_of(undisturbed("one process")))
    assert [row["step"] for row in read_rows(tmp_path / "logs" / "metrics_before_start_1.jsonl")] == [1, 2]
