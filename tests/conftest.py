"""What every test may ask for."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

settings.register_profile("any machine", deadline=None)  # a busy machine is no failure
settings.load_profile("any machine")

# Shells let background jobs ignore these signals, and processes inherit that; the tests send them.
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGQUIT, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real texts, benchmarks and tokenizers, which is not part of the repository."""
    folder = Path(os.environ.get("DSMATH_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder}: set DSMATH_TEST_DATA to run this test")
    return folder


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Corpora and a tokenizer for small runs."""
    from tests.support.corpora import write_inputs

    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def undisturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of the small run in a layout, trained once from start to end without interruption."""
    from tests.support.corpora import small_run
    from tests.support.ranks import run_ranks
    from tests.training.ranks import LAYOUTS, train_run

    folder, done = tmp_path_factory.mktemp("undisturbed"), {}

    def directory_of(layout: str) -> Path:
        if layout not in done:
            ranks, overrides = LAYOUTS[layout]
            run_ranks(ranks, train_run, small_run(inputs, folder / layout, **overrides))
            done[layout] = folder / layout
        return done[layout]

    return directory_of


@pytest.fixture(scope="session")
def one_process(undisturbed: Callable[[str], Path]) -> list[dict[str, Any]]:
    """The metrics of the uninterrupted run in one process."""
    from tests.training.ranks import rows_of

    return rows_of(undisturbed("one process"))
