"""A disk that takes no more, or fails: one clear error, and what was saved before is whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.faults.runs import Bits, Trial
from tests.training.ranks import status_of

WRITES = [  # points where the system is asked for something, and the rank that comes by
    *(("checkpoint.begun", 0), ("checkpoint.before_manifest", 0)),
    *((point, rank) for point in ("writer.inside_file", "writer.before_sync") for rank in (0, 1)),
]
SAID = {"full": "No space left on device", "quota": "Disk quota exceeded", "broken": "Input/output error"}


def refused_and_continued(trial: Trial, kind: str, point: str, rank: int, undisturbed: dict[str, Any]) -> None:
    ending = trial.go(f"{kind}:{point}:rank={rank}:count=2")
    assert ending.codes[rank] == status_of(trial.output)["exit_code"] == 78, ending.said
    assert ending.codes[1 - rank] in (70, 78)  # 70 where it only sees that the other is gone
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
    holds="one error that names the directory and the bytes free, exit 78, no half-written directory; the checkpoint "
    "before is whole, and the run goes on from it bit for bit",
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
    injected="a quota that is used up, a disk that fails (EDQUOT, EIO), at every write of a save",
    where="DP2: the same points",
    holds="as R4, in the system's words",
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
