"""Whole runs whose attention stays within documents, over samples of several documents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.corpora import small_run
from tests.support.ranks import run_ranks
from tests.training.ranks import Row, rows_of, train_run

TOLERANCE = 1e-5  # fp32 sums in another order, over 4 steps
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "pipeline 2 of virtual stages, full recompute": (2, {"pipeline": 2, "virtual_stages": 2, "recompute": "full"}),
    "tensor 2 with sequence, selective recompute": (2, {"tensor": 2, "sequence": True, "recompute": "selective"}),
    "data 2": (2, {}),
}


def trained(inputs: Path, folder: Path, ranks: int = 1, *, across: bool = False, **parallel: Any) -> list[Row]:
    """Four steps in microbatches of 2, validated on 3 sequences of each of 2 corpora.

    Two data-parallel ranks fill the last of their validation microbatches with padding, virtual stages add one.
    """
    run = small_run(
        inputs,
        folder,
        schedule__steps=4,
        schedule__peak_learning_rate=3e-3,
        data__attend_across_documents=across,
        validation__sequences_per_corpus=3,
        parallel__microbatch_sequences=2,
        **{f"parallel__{key}": value for key, value in parallel.items()},
    )
    run_ranks(ranks, train_run, run)
    return rows_of(folder)


@pytest.fixture(scope="module")
def one_process(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    return trained(inputs, tmp_path_factory.mktemp("one_process"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_layout_changes_the_losses(layout: str, one_process: list[Row], inputs: Path, tmp_path: Path) -> None:
    ranks, parallel = LAYOUTS[layout]
    rows = trained(inputs, tmp_path, ranks, **parallel)
    for ours, alone in zip(rows, one_process, strict=True):
        for name in {"loss", "grad_norm", "validation_loss"} & alone.keys():
            assert ours[name] == pytest.approx(alone[name], rel=TOLERANCE)


def test_the_switch_changes_the_losses_and_no_token(one_process: list[Row], inputs: Path, tmp_path: Path) -> None:
    across = trained(inputs, tmp_path, across=True)
    assert [row["tokens_by_corpus"] for row in across] == [row["tokens_by_corpus"] for row in one_process]
    for name in ("loss", "validation_loss"):
        assert abs(across[-1][name] / one_process[-1][name] - 1) > 100 * TOLERANCE
