"""Inputs for every run of this folder, and the runs that nothing disturbed, each trained once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.corpora import small_run, write_inputs
from tests.support.ranks import run_ranks
from tests.training.ranks import LAYOUTS, Row, rows_of, train_run


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of the small run in a layout, trained from start to end in one go."""
    folder, done = tmp_path_factory.mktemp("undisturbed"), {}

    def directory_of(layout: str) -> Path:
        if layout not in done:
            ranks, overrides = LAYOUTS[layout]
            run_ranks(ranks, train_run, small_run(inputs, folder / layout, **overrides))
            done[layout] = folder / layout
        return done[layout]

    return directory_of


@pytest.fixture(scope="session")
def one_process(undisturbed: Callable[[str], Path]) -> list[Row]:
    """The metrics of the undisturbed run in one process."""
    return rows_of(undisturbed("one process"))
