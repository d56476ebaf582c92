"""A run whose newest checkpoint has a damaged manifest or shard."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_dsmath.checkpoint.manifest import MANIFEST
from megatron_dsmath.cli import main
from tests.faults.runs import RANKS, Bits, Tally, Trial, bits_of
from tests.support.job import run_job
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
    injected="the newest manifest is empty, truncated, garbage, of another kind or missing, also with its pointer",
    where="DP2",
    holds="the run continues from the previous checkpoint, bit for bit; the damaged one is set aside, not overwritten",
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
    assert f"{checkpoints / 'step_6'} is not used" in ending.said
    assert "continuing after step 3" in ending.said
    same = bits_of(run.output) == undisturbed("DP2")
    tally.silent_corruptions += not same
    assert same
    tally.survived = tally.injected
    (aside,) = checkpoints.glob("step_6.damaged-*")
    assert (aside / "shards" / ".metadata").is_file()


@pytest.mark.fault(
    "R7",
    injected="the manifests of all checkpoints are damaged",
    where="DP2",
    holds="refused with 78, and nothing is changed: a run never starts from scratch over checkpoints",
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
    ending = run_job(run.run_file, RANKS)  # ranks without a check before they start, as under torchrun
    assert ending.codes == [78, 78], ending.said
    assert ending.said.count("error[checkpoint]") == 1
    assert rows_of(run.output) == rows
    tally.survived = tally.injected


def flipped(content: bytes) -> bytes:
    half = len(content) // 2
    return content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]


DAMAGES: dict[str, Callable[[Path, Path], object]] = {  # to a shard, given the same one of the step before
    "missing": lambda shard, _: shard.unlink(),
    "swapped": lambda shard, older: shutil.copyfile(older, shard),
    "cut": lambda shard, _: shard.write_bytes(shard.read_bytes()[:-1]),
    "flipped": lambda shard, _: shard.write_bytes(flipped(shard.read_bytes())),
}


@pytest.mark.fault(
    "R6",
    injected="a shard of the newest checkpoint is missing, of another step, truncated, or has a flipped bit",
    where="DP2",
    holds="all ranks refuse with 78 and one error that names the file; no step is trained. With `--resume last-good` "
    "the run continues from the previous checkpoint, bit for bit, reports why, and sets the damaged one aside",
)
@pytest.mark.parametrize(
    "how", ["swapped", *(pytest.param(how, marks=pytest.mark.long) for how in DAMAGES if how != "swapped")]
)
def test_a_damaged_shard(how: str, trial: Callable[..., Trial], tally: Tally, undisturbed: Bits) -> None:
    run = trial("DP2")
    checkpoints = killed_after_two_checkpoints(run)
    shard, rows = checkpoints / "step_6" / "shards" / "__1_0.distcp", rows_of(run.output)
    DAMAGES[how](shard, checkpoints / "step_3" / "shards" / shard.name)
    damaged = contents_of(checkpoints / "step_6")
    tally.injected += 1

    ending = run_job(run.run_file, RANKS)
    assert ending.codes == [78, 78], ending.said
    assert status_of(run.output)["exit_code"] == 78
    assert ending.said.count("error[checkpoint]: a file of the checkpoint differs from what was saved") == 1
    assert str(shard) in ending.said
    assert "undamaged checkpoint: --resume last-good" in ending.said
    assert rows_of(run.output) == rows

    ending = run_job(run.run_file, RANKS, "", "--resume", "last-good")
    assert ending.codes == [0, 0], ending.said
    (aside,) = checkpoints.glob("step_6.damaged-*")
    why = f"{checkpoints / 'step_6'} is set aside as {aside.name}: a file of the checkpoint differs from what was saved"
    assert ending.said.count(why) == 1
    assert "continuing after step 3" in ending.said
    assert contents_of(aside) == damaged
    same = bits_of(run.output) == undisturbed("DP2")
    tally.silent_corruptions += not same
    assert same
    tally.survived = tally.injected


@pytest.mark.fault(
    "R6",
    injected="damage to all checkpoints: the oldest in a shard, the newest in its manifest",
    where="DP2, `--resume last-good`",
    holds="all ranks refuse with 78; nothing is set aside, so that no later start begins from scratch",
)
def test_no_good_one_is_left(trial: Callable[..., Trial], tally: Tally) -> None:
    run = trial("DP2")
    checkpoints = killed_after_two_checkpoints(run)
    shard, rows = checkpoints / "step_3" / "shards" / "__0_0.distcp", rows_of(run.output)
    shard.write_bytes(flipped(shard.read_bytes()))
    spoil(checkpoints / "step_6" / MANIFEST, b"")
    tally.injected += 1
    ending = run_job(run.run_file, RANKS, "", "--resume", "last-good")
    assert ending.codes == [78, 78], ending.said
    assert ending.said.count("error[checkpoint]: the run has checkpoints, but none is complete") == 1
    assert str(shard) in ending.said
    assert list(checkpoints.glob("*.damaged-*")) == []
    assert rows_of(run.output) == rows
    tally.survived = tally.injected


def contents_of(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
