"""A step computed again distinguishes an error of a machine from one of the data, names the rank, and is bitwise."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.errors import InternalError
from tests.support.corpora import small_run
from tests.support.ranks import run_ranks
from tests.training.ranks import LAYOUTS, Row, numbers_of, read_rows, rows_of, train_run, with_fault

VERIFIED = {"guard__verify_every_steps": 2}
TWO_RANKS = {
    **{name: LAYOUTS[name][1] for name in ("data 2", "tensor 2 with sequence", "pipeline 2")},
    "data 2, overlapped": {"parallel__overlap_communication": True},
    "pipeline 2, interleaved": {"parallel__pipeline": 2, "parallel__virtual_stages": 2},
}
COORDINATES = {"data": "data {} of 2", "tensor": "tensor {} of 2", "pipeline": "pipeline stage {} of 2"}


def wrong_results(run: Path) -> list[Row]:
    file = run / "logs" / "wrong_results.jsonl"
    return read_rows(file) if file.exists() else []


@pytest.mark.parametrize(
    "layout",
    [pytest.param(layout, marks=() if layout == "tensor 2 with sequence" else pytest.mark.long) for layout in LAYOUTS],
)
def test_verified_steps_equal_those_of_a_run_without_verification(
    layout: str, inputs: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    ranks, overrides = LAYOUTS[layout]
    run_ranks(ranks, train_run, small_run(inputs, tmp_path, **VERIFIED, **overrides))
    assert numbers_of(rows_of(tmp_path)) == numbers_of(rows_of(undisturbed(layout)))
    assert wrong_results(tmp_path) == []


@pytest.mark.fault(
    "R14",
    injected="one value is doubled inside a layer of one rank, in one microbatch, once",
    where="DP2, TP2, PP2, with overlap, sequence parallelism and virtual stages",
    holds="the rank is named, and no rank that computed with its result",
)
@pytest.mark.parametrize(
    ("layout", "rank"),
    [
        pytest.param(layout, rank, marks=() if (layout, rank) in first else pytest.mark.long)
        for first in [{("tensor 2 with sequence", 1), ("pipeline 2", 0)}]
        for layout in TWO_RANKS
        for rank in (0, 1)
    ],
)
def test_the_rank_whose_layer_errs_once_is_named(layout: str, rank: int, inputs: Path, tmp_path: Path) -> None:
    run = small_run(inputs, tmp_path, schedule__steps=2, **VERIFIED, **TWO_RANKS[layout])
    microbatches = 2 if layout.startswith("data") else 4
    run_ranks(2, train_with_a_layer_that_errs, run, rank, microbatches)
    (row,) = wrong_results(tmp_path)
    assert (row["step"], row["kind"]) == (2, "transient")
    coordinates = COORDINATES[layout.split()[0]].format(rank)
    assert [(named["rank"], named["place"], named["host"]) for named in row["ranks"]] == [
        (rank, coordinates, os.uname().nodename)
    ]


def train_with_a_layer_that_errs(run: RunConfig, rank: int, microbatches: int) -> None:
    """On one rank, in the second computation of step 2, the first feed-forward layer doubles one value once."""
    import torch
    from megatron.core.transformer.mlp import MLP

    layers: list[MLP] = []
    outputs_seen = [0]

    def double_one_value(layer: MLP, _inputs: Any, outputs: Any) -> Any:
        if not isinstance(layer, MLP) or layer is not layers[0]:
            return None
        outputs_seen[0] += 1
        if outputs_seen[0] != 2 * microbatches + 1:  # step 1 is computed once
            return None
        values, *rest = outputs
        factors = values.detach().clone().fill_(1.0)
        factors.view(-1)[7] = 2.0
        return (values * factors, *rest)

    def find_first(layer: Any, _inputs: Any) -> None:
        if isinstance(layer, MLP) and not layers:
            layers.append(layer)

    if int(os.environ["RANK"]) == rank:
        torch.nn.modules.module.register_module_forward_pre_hook(find_first)
        torch.nn.modules.module.register_module_forward_hook(double_one_value)
    train_run(run)


@pytest.mark.parametrize("count", [3, pytest.param(4, marks=pytest.mark.long)], ids=["the first", "the second"])
def test_a_single_process_continues_with_the_result_of_two_equal_computations(
    count: int, inputs: Path, one_process: list[Row], tmp_path: Path
) -> None:
    run = small_run(inputs, tmp_path, guard__verify_every_steps=1)
    run_ranks(1, with_fault, f"drift:step.gradients:count={count}", train_run, run)
    assert numbers_of(rows_of(tmp_path)) == numbers_of(one_process)
    assert [(row["step"], row["kind"], row["ranks"][0]["rank"]) for row in wrong_results(tmp_path)] == [
        (2, "transient", 0)
    ]


def test_three_computations_with_three_results_stop_the_run_before_the_step_is_applied(
    inputs: Path, tmp_path: Path
) -> None:
    run = small_run(inputs, tmp_path, **VERIFIED)
    (said,) = run_ranks(1, with_fault, "drift:step.loss", error_of, run)
    assert "a rank computes wrong results" in said
    assert "step 2, rank 0 on " in said
    assert [row["step"] for row in rows_of(tmp_path)] == [1]
    assert [(row["step"], row["kind"]) for row in wrong_results(tmp_path)] == [(2, "persistent")]


def error_of(run: RunConfig) -> str:
    with pytest.raises(InternalError) as raised:
        train_run(run)
    return str(raised.value)


@pytest.mark.long
def test_an_error_that_is_the_same_each_time_is_not_found(inputs: Path, tmp_path: Path) -> None:
    """As the decision record states: it cannot be distinguished from the data's result."""
    run = small_run(inputs, tmp_path, schedule__steps=2, **VERIFIED)
    run_ranks(1, with_fault, "spike:step.loss", train_run, run)
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2]
    assert wrong_results(tmp_path) == []


@pytest.mark.fault(
    "R12",
    injected="NaN in the loss of one rank, once",
    where="DP2, PP2: `step.loss`; any policy, no step verified",
    holds="the step is computed again and applied, and the rank is named; every number is that of an undisturbed run",
)
@pytest.mark.parametrize(("layout", "count"), [("data 2", 8), pytest.param("pipeline 2", 14, marks=pytest.mark.long)])
def test_a_number_that_is_not_finite_once_is_an_error_of_the_machine_under_every_policy(
    layout: str, count: int, inputs: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    ranks, overrides = LAYOUTS[layout]
    fault = f"nan:step.loss:rank=1:count={count}"  # in step 4, whose first computation records no exchanges
    run_ranks(ranks, with_fault, fault, train_run, small_run(inputs, tmp_path, **overrides))
    assert numbers_of(rows_of(tmp_path)) == numbers_of(rows_of(undisturbed(layout)))
    (row,) = wrong_results(tmp_path)
    assert (row["step"], row["kind"], [named["rank"] for named in row["ranks"]]) == (4, "transient", [1])
    assert list((tmp_path / "logs").glob("rejected_*.json")) == []
