"""A rank that hangs or computes a number that is not finite, and the continued run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.runs import LAYOUTS, Bits, Trial
from tests.training.ranks import status_of

SOON = {"guard__setup_timeout_seconds": 20.0, "guard__step_timeout_seconds": 3.0, "guard__save_timeout_seconds": 5.0}
POINTS = ["step.begin:step=4", "microbatch.begin:count=6", "validation.begin", "save.begin:step=3"]


@pytest.mark.fault(
    "R10",
    injected="SIGSTOP to a rank, or a rank that sleeps forever",
    where="DP2, TP2, PP2: in a step, a microbatch, a validation, a save",
    holds="the job ends with 70 within the section's timeout and names the rank, even if it is stopped; started again, "
    "the run ends bit for bit like an undisturbed one",
)
@pytest.mark.parametrize(
    ("kind", "point", "rank", "layout"),
    [
        ("stop", "microbatch.begin:count=6", 1, "DP2"),
        *(
            pytest.param(kind, point, rank, layout, marks=pytest.mark.long)
            for layout in LAYOUTS
            for point in POINTS
            for kind, rank in (("stop", 0), ("stop", 1), ("hang", 1))
        ),
    ],
)
def test_a_rank_that_hangs(
    kind: str, point: str, rank: int, layout: str, trial: Callable[..., Trial], undisturbed: Bits
) -> None:
    run = trial(layout, **SOON)
    ending = run.go(f"{kind}:{point}:rank={rank}")
    assert ending.codes[1 - rank] == 70, ending.said
    assert ending.codes[rank] == (-9 if kind == "stop" else 70)
    assert ending.said.count("error[internal]: a rank hangs") == 1
    assert f"rank {rank} " in status_of(run.output)["message"]
    run.ends_like(undisturbed(layout))


@pytest.mark.fault(
    "R12",
    injected="NaN or infinity in the loss or in the gradients of one rank",
    where="DP2, TP2, PP2: `step.loss`, `step.gradients`, each rank",
    holds="no rank applies the step, all ranks end with 70, the batch is reported, and only finite numbers are saved; "
    "started again, the run ends bit for bit like an undisturbed one",
)
@pytest.mark.parametrize(
    ("kind", "point", "rank", "layout"),
    [
        ("nan", "step.gradients:step=4", 1, "DP2"),
        *(
            pytest.param(kind, point, rank, layout, marks=pytest.mark.long)
            for layout in LAYOUTS
            for kind in ("nan", "infinity")
            for point in ("step.loss:step=2", "step.gradients:step=4")
            for rank in (0, 1)
            if not (layout == "PP2" and "loss" in point and rank == 0)  # the first stage computes no loss
        ),
    ],
)
def test_a_number_that_is_not_finite(
    kind: str, point: str, rank: int, layout: str, trial: Callable[..., Trial], undisturbed: Bits
) -> None:
    run = trial(layout)
    ending = run.go(f"{kind}:{point}:rank={rank}")
    assert ending.codes == [70, 70], ending.said
    assert "the loss or the gradient is not finite" in ending.said
    assert list((run.output / "logs").glob("rejected_*.json")) != []
    run.ends_like(undisturbed(layout))
