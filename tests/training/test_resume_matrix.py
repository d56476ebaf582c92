"""A run that goes from 1 to 2 to 4 and back to 1 process, over tensor, pipeline and data parallelism."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_dsmath.data.audit.audit import audit
from tests.parallel.test_shards import tensors_of
from tests.support.corpora import small_run
from tests.support.ranks import run_ranks
from tests.training.ranks import Row, read_rows, rows_of, train_run

# The steps after which the layout changes; of losses in another layout, the same numbers are summed in another order.
STEPS, TOLERANCE = (3, 6, 9, 12), 1e-5

TENSOR, PIPELINE, DATA = {"parallel__tensor": 2}, {"parallel__pipeline": 2}, {}
WAYS: dict[str, list[tuple[str, int, dict[str, Any]]]] = {
    "tensor": [("TP2", 2, TENSOR), ("TP2 x DP2", 4, TENSOR)],
    "pipeline": [("PP2", 2, PIPELINE), ("TP2 x PP2", 4, TENSOR | PIPELINE)],
    "data": [("DP2", 2, DATA), ("PP2 x DP2", 4, PIPELINE)],
}
ALONE: tuple[str, int, dict[str, Any]] = ("one process", 1, {})


def difference(ours: list[Row], theirs: list[Row], name: str) -> float:
    """The largest relative one."""
    return max(abs(our[name] / their[name] - 1) for our, their in zip(ours, theirs, strict=True))


def travel(way: list[tuple[str, int, dict[str, Any]]], inputs: Path, output: Path) -> None:
    """Train to each of STEPS in the next layout of the way, and print what that changed."""
    for (_, ranks, overrides), steps in zip(way, STEPS, strict=True):
        run_ranks(ranks, train_run, small_run(inputs, output, schedule__steps=steps, **overrides))


def same_state(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same weights, masters and moments, bit for bit."""
    ours, theirs = tensors_of(one / "shards"), tensors_of(other / "shards")
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, saved and continued at the same steps, in one process."""
    output = tmp_path_factory.mktemp("alone")
    travel([ALONE] * len(STEPS), inputs, output)
    return output


@pytest.mark.fault(
    "R15",
    injected="a run that continues in one layout after the other",
    where="1, 2, 4, 1 processes",
    holds="the same tokens, losses within 1e-5",
)
@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
def test_a_run_goes_on_in_other_layouts_with_the_same_tokens_and_losses(
    way: str, inputs: Path, alone: Path, tmp_path: Path
) -> None:
    layouts = [ALONE, *WAYS[way], ALONE]
    travel(layouts, inputs, tmp_path)
    ours, theirs = rows_of(tmp_path), rows_of(alone)
    for (name, _, _), first, last in zip(layouts, (0, *STEPS), STEPS, strict=False):
        steps = slice(first, last)
        figures = [difference(ours[steps], theirs[steps], figure) for figure in ("loss", "grad_norm")]
        print(f"| {name} | {first + 1} to {last} | {figures[0]:.1e} | {figures[1]:.1e} |")
    assert difference(ours, theirs, "loss") < TOLERANCE
    assert read_rows(tmp_path / "ledger" / "steps.jsonl") == read_rows(alone / "ledger" / "steps.jsonl")
    assert audit(tmp_path).faults == ()


def save_again(run: Any, output: Path) -> None:
    """Load the newest checkpoint in this layout, and write what was loaded to `output`."""
    from megatron_dsmath.parallel.topology import initialize_topology
    from megatron_dsmath.training.job import open_job
    from megatron_dsmath.training.resuming import choose_checkpoint, restore
    from tests.support.training import save_shards

    topology = initialize_topology(run.parallel, run.seed)
    checkpoint = choose_checkpoint(run, topology)
    job = open_job(run, topology, checkpoint)
    restore(job, checkpoint)
    save_shards(output / "shards", job.model_chunks, job.optimizer, topology)


@pytest.mark.parametrize(
    "layout", [WAYS["data"][0], pytest.param(WAYS["pipeline"][1], marks=pytest.mark.long)], ids=str
)
def test_what_another_layout_loads_is_what_was_saved(
    layout: tuple[str, int, dict[str, Any]], inputs: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    _, ranks, overrides = layout
    run = small_run(inputs, undisturbed("one process"), **overrides)
    run_ranks(ranks, save_again, run, tmp_path)
    assert same_state(tmp_path, undisturbed("one process") / "checkpoints" / "step_9")
