"""A rank that computes a wrong but finite number, once or each time, and the continued run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.runs import LAYOUTS, Bits, Trial
from tests.training.ranks import read_rows, status_of

VERIFIED = {"guard__verify_every_steps": 1}
PLACES = {"DP2": "data {} of 2", "TP2": "tensor {} of 2", "PP2": "pipeline stage {} of 2"}
EVERYWHERE = [
    pytest.param(layout, point, rank, marks=pytest.mark.long)
    for layout in LAYOUTS
    for point in ("step.loss", "step.gradients")
    for rank in (0, 1)
    if not (layout == "PP2" and point == "step.loss" and rank == 0)  # the first stage computes no loss
]


def wrong_results(run: Trial) -> list[dict[str, Any]]:
    return read_rows(run.output / "logs" / "wrong_results.jsonl")


@pytest.mark.fault(
    "R14",
    injected="a loss or the gradients of one rank become slightly too large, once",
    where="DP2, TP2, PP2: `step.loss`, `step.gradients`, each rank; `guard.verify_every_steps: 1`",
    holds="the step is computed again, the rank is named with its coordinates and host, and the run ends bit for bit "
    "like an undisturbed one",
)
@pytest.mark.parametrize(("layout", "point", "rank"), [("DP2", "step.loss", 1), *EVERYWHERE])
def test_an_error_that_happens_once(
    layout: str, point: str, rank: int, trial: Callable[..., Trial], undisturbed: Bits
) -> None:
    run = trial(layout, **VERIFIED)
    ending = run.go(f"drift:{point}:rank={rank}:count=9")
    assert ending.codes == [0, 0], ending.said
    (row,) = wrong_results(run)
    assert row["kind"] == "transient"
    assert [(named["rank"], named["place"]) for named in row["ranks"]] == [(rank, PLACES[layout].format(rank))]
    assert f"rank {rank} ({PLACES[layout].format(rank)})" in ending.said
    run.ends_like(undisturbed(layout))


@pytest.mark.fault(
    "R14",
    injected="a loss or the gradients of one rank become too large each time, by a different amount",
    where="DP2, TP2, PP2: the same points",
    holds="all ranks end with 70 before the step is applied; one error names the rank, its coordinates and its host; "
    "started again without the fault, the run ends bit for bit like an undisturbed one",
)
@pytest.mark.parametrize(("layout", "point", "rank"), [("DP2", "step.gradients", 0), *EVERYWHERE])
def test_an_error_that_happens_each_time(
    layout: str, point: str, rank: int, trial: Callable[..., Trial], undisturbed: Bits
) -> None:
    run = trial(layout, **VERIFIED)
    ending = run.go(f"drift:{point}:rank={rank}")
    assert ending.codes == [70, 70], ending.said
    assert ending.said.count("error[internal]: a rank computes wrong results") == 1
    assert f"step 1, rank {rank} ({PLACES[layout].format(rank)})" in ending.said
    assert status_of(run.output)["step"] == 0
    (row,) = wrong_results(run)
    assert (row["kind"], [named["rank"] for named in row["ranks"]]) == ("persistent", [rank])
    run.ends_like(undisturbed(layout))
