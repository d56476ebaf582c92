"""A disk that is full or fails: one clear error, and the previous checkpoints are complete."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.runs import RANKS, Bits, Tally, Trial
from tests.support.job import run_job
from tests.training.ranks import read_rows, rows_of, status_of

WRITES = [  # points before calls of the system, and the rank that reaches them
    *(("checkpoint.begun", 0), ("checkpoint.before_manifest", 0)),
    *((point, rank) for point in ("writer.inside_file", "writer.before_sync") for rank in (0, 1)),
]
SAID = {"full": "No space left on device", "quota": "Disk quota exceeded", "broken": "Input/output error"}


def refused_and_continued(trial: Trial, kind: str, point: str, rank: int, undisturbed: dict[str, Any]) -> None:
    """The second save fails, of step 6."""
    ending = trial.go(f"{kind}:{point}:rank={rank}:count=2")
    assert ending.codes == [78, 78], ending.said
    assert status_of(trial.output)["exit_code"] == 78
    assert ending.said.count("error[output]") == 1
    assert SAID[kind] in ending.said
    assert "Traceback" not in ending.said
    assert trial.saved_steps() == [3]
    assert list((trial.output / "checkpoints").glob("*.incomplete-*")) == []
    trial.ends_like(undisturbed)


@pytest.mark.fault(
    "R4",
    injected="a full disk at every write of a save, on each rank",
    where="DP2, TP2, PP2: the first directory, a file, its fsync, the manifest",
    holds="one error that names the directory and the free bytes, exit code 78 of all ranks, no incomplete directory; "
    "the previous checkpoint is complete, and the run continues from it bit for bit",
)
@pytest.mark.parametrize(
    ("layout", "point", "rank"),
    [
        ("DP2", "writer.inside_file", 1),
        *(
            pytest.param(layout, point, rank, marks=pytest.mark.long)
            for layout in ("DP2", "TP2", "PP2")
            for point, rank in WRITES
        ),
    ],
)
def test_a_disk_that_is_full(
    layout: str, point: str, rank: int, trial: Callable[..., Trial], undisturbed: Bits
) -> None:
    refused_and_continued(trial(layout), "full", point, rank, undisturbed(layout))


@pytest.mark.fault(
    "R5",
    injected="an exceeded quota or a failing disk (EDQUOT, EIO) at every write of a save",
    where="DP2: the same points",
    holds="as R4, with the system's message",
)
@pytest.mark.parametrize(
    ("kind", "point", "rank"),
    [
        ("quota", "writer.inside_file", 0),
        ("broken", "writer.before_sync", 1),
        *(
            pytest.param(kind, point, rank, marks=pytest.mark.long)
            for kind in ("quota", "broken")
            for point, rank in WRITES
        ),
    ],
)
def test_a_disk_that_refuses(kind: str, point: str, rank: int, trial: Callable[..., Trial], undisturbed: Bits) -> None:
    refused_and_continued(trial("DP2"), kind, point, rank, undisturbed("DP2"))


@pytest.mark.fault(
    "R4",
    injected="a full disk at every write of a save, with `checkpoint.max_failures: 1`",
    where="DP2: the same points; the second save",
    holds="the failure is printed once and counted in the metrics, no incomplete directory is left, and the run "
    "continues: it ends bit for bit like an undisturbed one",
)
@pytest.mark.parametrize(
    ("kind", "point", "rank"),
    [
        ("full", "writer.before_sync", 1),
        *(
            pytest.param(kind, point, rank, marks=pytest.mark.long)
            for kind in SAID
            for point, rank in WRITES
            if (kind, point, rank) != ("full", "writer.before_sync", 1)
        ),
    ],
)
def test_a_save_that_may_fail(kind: str, point: str, rank: int, trial: Callable[..., Trial], undisturbed: Bits) -> None:
    run = trial("DP2", checkpoint__max_failures=1)
    ending = run.go(f"{kind}:{point}:rank={rank}:count=2")
    assert ending.codes == [0, 0], ending.said
    assert ending.said.count("step 6 is not saved: the output cannot be written") == 1
    assert SAID[kind] in ending.said
    assert "error[" not in ending.said
    assert "Traceback" not in ending.said
    rows = rows_of(run.output)
    assert (rows[0]["failed_saves"], rows[-1]["failed_saves"]) == (0, 1)
    failed = [row for row in read_rows(run.output / "logs" / "saves.jsonl") if "failed" in row]
    assert [row["step"] for row in failed] == [6]
    assert run.saved_steps() == [9, 12]
    assert list((run.output / "checkpoints").glob("*.incomplete-*")) == []
    run.is_like(undisturbed("DP2"))


@pytest.mark.fault(
    "R4",
    injected="a disk that stays full, with `checkpoint.max_failures: 1`",
    where="DP2: a file",
    holds="the run continues after one failed save; the second in a row ends it with 78 on all ranks",
)
def test_saves_that_fail_again_and_again(trial: Callable[..., Trial], tally: Tally) -> None:
    run = trial("DP2", checkpoint__max_failures=1)
    ending = run_job(run.run_file, RANKS, "full:writer.inside_file:rank=1")
    tally.injected += 1
    assert ending.codes == [78, 78], ending.said
    assert ending.said.count("step 3 is not saved") == 1
    assert ending.said.count("error[output]") == 1
    assert run.saved_steps() == []
    assert 6 <= run.last_step < 9
    tally.survived = tally.injected


def test_a_run_whose_last_save_fails_is_not_done(trial: Callable[..., Trial], tally: Tally) -> None:
    run = trial("DP2", checkpoint__max_failures=9)
    ending = run.go("full:writer.inside_file:rank=1:count=4")
    assert ending.codes == [78, 78], ending.said
    assert status_of(run.output)["state"] == "refused"
    assert run.saved_steps() == [6, 9]
    tally.survived = tally.injected
