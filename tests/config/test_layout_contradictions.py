"""Layouts of the paper's run that fit or do not fit the number of processes. More in test_contradictions.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_dsmath.config import load
from megatron_dsmath.config.layout_contradictions import even_stages
from megatron_dsmath.errors import LayoutError
from tests.support.seeded import PAPER_RUN, seeded

INTERLEAVED = ["parallel.pipeline=2", "parallel.virtual_stages=2", "parallel.stage_layers=[8, 7, 7, 8]"]


@pytest.mark.parametrize(
    ("world_size", "overrides", "found", "fix"),
    [
        (7, [], "7 processes, tensor 2 x pipeline 1", "--nproc 2"),
        (1, [], "1 processes, tensor 2 x pipeline 1", "--nproc 2"),
        (6, [], "3 data-parallel processes x microbatches of 1", "sequences_per_step: 2562"),
        (16, [*INTERLEAVED, "schedule.sequences_per_step=12"], "3 microbatches, 2 stages", "virtual_stages: 1"),
    ],
)
def test_a_layout_that_does_not_fit_the_processes_is_refused(
    world_size: int, overrides: list[str], found: str, fix: str, tmp_path: Path
) -> None:
    error = seeded(tmp_path).refusal(overrides, world_size)
    assert isinstance(error, LayoutError)
    assert found in str(error.found)
    assert fix in str(error.fix)


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
@pytest.mark.parametrize("pipeline", [1, 2, 3, 5])
def test_every_layout_of_the_paper_run_is_accepted(tensor: int, pipeline: int) -> None:
    layout = [f"parallel.tensor={tensor}", f"parallel.pipeline={pipeline}", f"parallel.sequence={tensor > 1}".lower()]
    run = load(PAPER_RUN, layout, world_size=tensor * pipeline * 4)
    assert run.parallel.model_size == tensor * pipeline


def test_thirty_layers_over_four_stages_are_7_8_8_7() -> None:
    assert even_stages(30, 4) == [7, 8, 8, 7]
    assert load(PAPER_RUN, ["parallel.pipeline=4", "parallel.stage_layers=[7, 8, 8, 7]"], world_size=8)


@pytest.mark.parametrize(("layers", "chunks"), [(30, 4), (30, 8), (7, 3), (2, 2), (31, 30)])
def test_even_stages_hold_every_layer_and_differ_by_at_most_one(layers: int, chunks: int) -> None:
    stages = even_stages(layers, chunks)
    assert (sum(stages), len(stages)) == (layers, chunks)
    assert max(stages) - min(stages) <= 1
