"""A run whose newest checkpoint no longer says what it is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_dsmath.checkpoint.manifest import MANIFEST
from megatron_dsmath.cli import main
from tests.faults.job import run_job
from tests.faults.runs import RANKS, Bits, Tally, Trial, bits_of
from tests.training.ranks import rows_of, status_of

SPOILED = {
    "empty": b"",
    "cut": b'{\n "format": "megatron_dsmath checkpoint",\n "vers',
    "garbage": bytes(range(256)),
    "other": b'{"format": "other"}',
    "gone": None,
}


def spoil(file: Path, content: bytes | None) -> None:
    if content is None:
        file.unlink()
    else:
        file.write_bytes(content)


def killed_after_two_checkpoints(trial: Trial) -> Path:
    """Published are those of steps 3 and 6."""
    ending = trial.go("kill:checkpoint.copied:rank=1:step=9")
    assert ending.codes[1] == -9
    assert trial.saved_steps() == [3, 6]
    return trial.output / "checkpoints"


@pytest.mark.fault(
    "R7",
    injected="the newest manifest empty, cut, garbage, of something else, gone; and the pointer with it",
    where="DP2",
    holds="the run goes on from the checkpoint before, bit for bit; the damaged one is set aside, not written over",
)
@pytest.mark.parametrize(
    "how", ["cut", *(pytest.param(how, marks=pytest.mark.long) for how in SPOILED if how != "cut")]
)
def test_a_spoiled_manifest(how: str, trial: Callable[..., Trial], tally: Tally, undisturbed: Bits) -> None:
    run = trial("DP2")
    checkpoints = killed_after_two_checkpoints(run)
    spoil(checkpoints / "step_6" / MANIFEST, SPOILED[how])
    spoil(checkpoints / "LATEST", SPOILED[how])
    tally.injected += 1
    ending = run_job(run.run_file, RANKS)
    assert ending.codes == [0, 0], ending.said
    assert "continuing after step 3" in ending.said
    same = bits_of(run.output) == undisturbed("DP2")
    tally.silent_corruptions += not same
    assert same
    tally.survived = tally.injected
    (aside,) = checkpoints.glob("step_6.damaged-*")
    assert (aside / "shards" / ".metadata").is_file()


@pytest.mark.fault(
    "R7",
    injected="the manifests of all checkpoints spoiled",
    where="DP2",
    holds="refused with 78, nothing changed: a run never begins anew over checkpoints",
)
def test_no_manifest_is_left(trial: Callable[..., Trial], tally: Tally, capsys: pytest.CaptureFixture[str]) -> None:
    run = trial("DP2")
    checkpoints = killed_after_two_checkpoints(run)
    rows = rows_of(run.output)
    for step, content in ((3, b""), (6, b"{}")):
        spoil(checkpoints / f"step_{step}" / MANIFEST, content)
    tally.injected += 1
    assert main(["train", str(run.run_file), "--nproc", str(RANKS)]) == 78
    assert capsys.readouterr().err.count("error[checkpoint]") == 1
    assert rows_of(run.output) == rows
    tally.survived = tally.injected


@pytest.mark.fault(
    "R6",
    injected="a shard missing, and one of another step in its place",
    where="DP2",
    holds="refused with 78 in one error that names the file; no step is trained",
)
@pytest.mark.parametrize("how", ["missing", "swapped"])
def test_a_shard_that_is_not_this_one_s(how: str, trial: Callable[..., Trial], tally: Tally) -> None:
    run = trial("DP2")
    checkpoints = killed_after_two_checkpoints(run)
    shard, rows = checkpoints / "step_6" / "shards" / "__1_0.distcp", rows_of(run.output)
    if how == "missing":
        shard.unlink()
    else:
        shutil.copyfile(checkpoints / "step_3" / "shards" / shard.name, shard)
    tally.injected += 1
    ending = run_job(run.run_file, RANKS)
    assert set(ending.codes) <= {70, 78}, ending.said  # 70 where another rank checked that file
    assert status_of(run.output)["exit_code"] == 78
    assert ending.said.count("error[checkpoint]: a file of the checkpoint is not what was saved") == 1
    assert str(shard) in ending.said
    assert rows_of(run.output) == rows
    tally.survived = tally.injected
