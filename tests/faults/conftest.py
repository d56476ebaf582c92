"""The inputs of the campaign, its undisturbed runs, each trained once, and the counts of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.faults.runs import RANKS, Bits, Tally, Trial, bits_of
from tests.support.corpora import write_inputs
from tests.support.job import run_job


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="session")
def undisturbed_run(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The directory of a layout's run, trained from start to end in one go."""
    done: dict[str, Path] = {}

    def directory_of(layout: str) -> Path:
        if layout not in done:
            trial = Trial(inputs, tmp_path_factory.mktemp(layout), layout, Tally())
            ending = run_job(trial.run_file, RANKS)
            assert ending.codes == [0] * RANKS, ending.said
            done[layout] = trial.output
        return done[layout]

    return directory_of


@pytest.fixture(scope="session")
def undisturbed(undisturbed_run: Callable[[str], Path]) -> Bits:
    """The results of a layout's undisturbed run (`bits_of`)."""
    return lambda layout: bits_of(undisturbed_run(layout))


@pytest.fixture
def tally(request: pytest.FixtureRequest) -> Iterator[Tally]:
    """The counts of the test, for the table at the end."""
    counts = Tally()
    yield counts
    request.node.user_properties.append(("tally", asdict(counts)))


@pytest.fixture
def trial(inputs: Path, tmp_path: Path, tally: Tally) -> Callable[..., Trial]:
    """`trial(layout, **overrides)`: a run for faults."""
    return lambda layout, **overrides: Trial(inputs, tmp_path, layout, tally, **overrides)
