"""A rank that is killed at any point: the job ends soon, and continues bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from megatron_dsmath.fault_injection import POINTS
from tests.faults.runs import LAYOUTS, RANKS, STEPS, Bits, Trial

SECONDS_TO_FOLLOW = 5.0
IN_A_SAVE = [point for point in POINTS if point.startswith(("checkpoint.", "writer."))]
ON_EVERY_RANK = ["checkpoint.copying", "checkpoint.copied", *(point for point in POINTS if "writer." in point)]
PASSAGES = [(point, rank) for point in IN_A_SAVE for rank in range(RANKS) if not rank or point in ON_EVERY_RANK]


def killed(trial: Trial, point: str, rank: int, save: int) -> None:
    """Kill the rank, or its writer, at that point of the run's n-th save; the error names a writer that died."""
    ending = trial.go(f"kill:{point}:rank={rank}:count={save}")
    is_writers = "writer." in point or "before_" in point or "pruning" in point
    assert ending.codes[rank] == (70 if is_writers else -9), ending.said
    assert ending.codes[1 - rank] in (70, 78)
    assert ending.seconds_to_follow < SECONDS_TO_FOLLOW


def dies_at_a_step(trial: Trial, rank: int, step: int, undisturbed: dict[str, Any]) -> None:
    ending = trial.go(f"kill:step.begin:rank={rank}:step={step}")
    assert (ending.codes[rank], ending.codes[1 - rank]) == (-9, 70), ending.said
    assert ending.seconds_to_follow < SECONDS_TO_FOLLOW
    assert trial.last_step == step
    trial.ends_like(undisturbed)


@pytest.mark.fault(
    "R1",
    injected="SIGKILL to a rank as a step begins: each rank, each step of 12",
    where="DP2, TP2, PP2: `step.begin`",
    holds="the other rank ends with 70 within 5 s; started again, the run ends bit for bit like an undisturbed one: "
    "metrics, tokens, weights, moments",
)
@pytest.mark.parametrize(("layout", "rank", "step"), [("DP2", 1, 7), ("TP2", 0, 2), ("PP2", 1, 11)])
def test_a_rank_killed_at_a_step(
    layout: str, rank: int, step: int, trial: Callable[..., Trial], undisturbed: Bits
) -> None:
    dies_at_a_step(trial(layout), rank, step, undisturbed(layout))


@pytest.mark.long
@pytest.mark.fault("R1")
@pytest.mark.parametrize("step", range(STEPS))
@pytest.mark.parametrize("rank", range(RANKS))
@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_rank_killed_at_each_step(
    layout: str, rank: int, step: int, trial: Callable[..., Trial], undisturbed: Bits
) -> None:
    dies_at_a_step(trial(layout), rank, step, undisturbed(layout))


@pytest.mark.long
@pytest.mark.fault(
    "R1",
    injected="SIGKILL to rank 0 between a step's row in the ledger and its row in metrics.jsonl, or while it replaces "
    "STATUS.json",
    where="DP2, TP2, PP2: `row.before_append`, `file.before_rename`",
    holds="the same; each step has one row in both files",
)
@pytest.mark.parametrize("fault", ["kill:row.before_append:rank=0:count=7", "kill:file.before_rename:rank=0:count=5"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_rank_0_killed_while_it_records_a_step(
    layout: str, fault: str, trial: Callable[..., Trial], undisturbed: Bits
) -> None:
    run = trial(layout)
    assert run.go(fault).codes == [-9, 70]
    run.ends_like(undisturbed(layout))


@pytest.mark.fault(
    "R2",
    injected="SIGKILL at every point inside a save, to each rank or writer that reaches the point",
    where="DP2, TP2, PP2: every `checkpoint.*` and `writer.*`",
    holds="every published checkpoint exists and verifies; the run continues from the newest and ends bit for bit like "
    "an undisturbed one; no incomplete directory is left",
)
@pytest.mark.parametrize(
    ("layout", "point", "rank"),
    [
        ("DP2", "writer.inside_file", 1),
        ("DP2", "checkpoint.before_rename", 0),
        ("DP2", "checkpoint.pruning", 0),
    ],
)
def test_a_kill_inside_a_save(
    layout: str, point: str, rank: int, trial: Callable[..., Trial], undisturbed: Bits
) -> None:
    dies_in_a_save(trial(layout), point, rank, undisturbed(layout))


@pytest.mark.long
@pytest.mark.fault("R2")
@pytest.mark.parametrize(("point", "rank"), PASSAGES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_kill_at_every_point_inside_a_save(
    layout: str, point: str, rank: int, trial: Callable[..., Trial], undisturbed: Bits
) -> None:
    dies_in_a_save(trial(layout), point, rank, undisturbed(layout))


def dies_in_a_save(trial: Trial, point: str, rank: int, undisturbed: dict[str, Any]) -> None:
    killed(trial, point, rank, save=1 if point == "checkpoint.pruning" else 2)  # the third save is the first to prune
    trial.ends_like(undisturbed)
    left = sorted(path.name for path in (trial.output / "checkpoints").iterdir())
    assert left == ["LATEST", "step_12", "step_9"]


@pytest.mark.fault(
    "R3",
    injected="a kill in the save of one step, and again at the same point when the run saves that step again",
    where="DP2: points before and after the rename",
    holds="as R2, twice; a published checkpoint is never written again (same inode, same time, same hashes)",
)
@pytest.mark.parametrize(
    "point",
    [
        "checkpoint.before_rename",
        *(
            pytest.param(point, marks=pytest.mark.long)
            for point in IN_A_SAVE
            if point not in ("checkpoint.before_rename", "checkpoint.pruning", "checkpoint.begun")
        ),
    ],
)
def test_the_same_save_killed_twice(point: str, trial: Callable[..., Trial], undisturbed: Bits) -> None:
    run = trial("DP2")
    for save in (2, 1):  # the second attempt begins after step 3, or after step 6 where that was published
        killed(run, point, 0, save)
    run.ends_like(undisturbed("DP2"))
