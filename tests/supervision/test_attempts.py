"""Restarts without progress are refused with 78; restarts with progress or after a stop request are not."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_dsmath.cli import main
from megatron_dsmath.errors import RunError
from megatron_dsmath.supervision.attempts import begin_attempt, require_progress
from megatron_dsmath.training.run_directory import RunDirectory, Status
from tests.support.corpora import write_run_file
from tests.support.ranks import run_ranks
from tests.training.ranks import dsmath, status_of, with_fault


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    return directory


def start(directory: RunDirectory, from_step: int, ending: Status) -> None:
    """One start and how it ended; `running` is a kill."""
    checkpoint = directory.checkpoints / f"step_{from_step}" if from_step else None
    begin_attempt(directory, checkpoint)
    directory.write_status("running", None, from_step)
    codes = {"running": None, "failed": 70, "stopped": 75, "refused": 78, "done": 0}
    directory.write_status(ending, codes[ending], from_step + 7, "the loss is not finite")


@pytest.mark.parametrize("ending", ["failed", "running"])
def test_after_a_start_and_three_restarts_from_one_checkpoint_it_is_refused(
    ending: Status, directory: RunDirectory
) -> None:
    for _ in range(4):
        start(directory, 40, ending)
    with pytest.raises(RunError) as refused:
        require_progress(directory, directory.checkpoints / "step_40")
    assert refused.value.exit_code == 78
    assert "4 starts from step 40 failed, the last after step 47: the loss is not finite" in refused.value.text()
    assert (status_of(directory.root)["state"], status_of(directory.root)["exit_code"]) == ("refused", 78)
    assert "the loss is not finite" in status_of(directory.root)["message"]


def test_after_the_refusal_the_run_may_be_started_as_often_again(directory: RunDirectory) -> None:
    for _ in range(2):
        for _ in range(4):
            start(directory, 40, "failed")
        with pytest.raises(RunError):
            start(directory, 40, "failed")


@pytest.mark.parametrize(
    "starts",
    [
        [(0, "failed"), (10, "failed"), (20, "failed"), (30, "failed"), (40, "failed")],
        [(40, "failed")] * 3 + [(50, "failed")] * 3,
        [(0, "stopped")] * 9,  # preempted before the first step, again and again
        [(40, "failed")] * 3 + [(40, "stopped")] + [(40, "failed")] * 3,
    ],
    ids=["each further", "two places", "asked to stop", "asked to stop between"],
)
def test_a_run_with_progress_or_a_stop_request_is_not_refused(
    starts: list[tuple[int, Status]], directory: RunDirectory
) -> None:
    for from_step, ending in starts:
        start(directory, from_step, ending)


@pytest.mark.fault(
    "R11",
    injected="an error at one step in every start",
    where="one process: `step.begin`",
    holds="refused with 78 after three restarts without a new checkpoint; the step and the last error are named",
)
def test_a_fault_at_one_step_in_every_start_ends_the_restarts(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml", checkpoint__asynchronous=False)
    codes = []
    for _ in range(5):
        (ending,) = run_ranks(1, with_fault, "raise:step.begin:step=4", dsmath, ["train", str(run_file)])
        codes.append(ending.code)
    # The first start saves after step 3 and fails after step 4; the next four continue from there.
    assert codes == [70, 70, 70, 70, 70]
    assert main(["train", str(run_file), "--check"]) == 78
    said = capsys.readouterr().err
    assert "4 starts from step 3 failed, the last after step 4: InjectedFaultError" in said
    assert status_of(tmp_path / "run")["exit_code"] == 78
