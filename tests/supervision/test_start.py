"""The checks before anything starts, and the one rank that reports a failure for all."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from megatron_dsmath.cli import main
from megatron_dsmath.config import load
from megatron_dsmath.errors import OutputError
from megatron_dsmath.supervision import start
from megatron_dsmath.training.inputs import require_room
from megatron_dsmath.training.run_directory import RunDirectory
from tests.support.corpora import write_run_file
from tests.support.ranks import run_ranks
from tests.training.ranks import Ending, Row, dsmath, numbers_of, rows_of, status_of, with_fault


@pytest.fixture
def run_file(inputs: Path, tmp_path: Path) -> Path:
    return write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml")


def test_check_prints_the_run_s_directory_and_starts_nothing(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(run_file), "--nproc", "2", "--check"]) == 0
    output = run_file.parent / "run"
    assert capsys.readouterr().out == f"{output}\n"
    assert [path for path in output.rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("options", [["--nproc", "2"], [], ["--check"]])
def test_a_refused_run_file_creates_nothing(
    options: list[str], run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = ["--set", "schedule.steps=0", "--set", "model.layer=3"]
    assert main(["train", str(run_file), *wrong, *options]) == 78
    assert capsys.readouterr().err.count("error[config]") == 2
    assert not (run_file.parent / "run").exists()


@pytest.mark.fault(
    "R4",
    injected="less free space than the checkpoints that a run will keep need",
    where="the check before any process starts",
    holds="refused with the needed and the free bytes, and nothing is written",
)
@pytest.mark.parametrize(("kept", "missing"), [(0, 3), (1, 2), (2, 1), (5, 1)])
def test_a_disk_too_small_for_what_will_be_kept_is_refused(
    kept: int, missing: int, run_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = load(str(run_file), ["checkpoint.keep=2"])
    for step in range(kept):
        (Path(run.output) / f"checkpoints/step_{step}").mkdir(parents=True)
    needed = missing * run.model.parameters * 16  # bf16 and fp32 weights, two moments, and a little
    usage = shutil.disk_usage(run_file.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
    require_room(run)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed - 1))
    with pytest.raises(OutputError, match=f"{needed:,} bytes: {missing} more"):
        require_room(run)
    if not kept:
        assert main(["train", str(run_file), "--check", "--set", "checkpoint.keep=2"]) == 78
        assert "lower checkpoint.keep, now 2" in capsys.readouterr().err
        assert not Path(run.output).exists()


def test_a_directory_that_cannot_be_written_is_not_reported_as_full(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", str(run_file), "--check", "--set", "output=/proc/run"]) == 78
    said = capsys.readouterr().err
    assert "the output cannot be written" in said
    assert "do not fit" not in said


def test_a_run_without_ranks_is_refused(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(run_file), "--nproc", "0"]) == 78
    assert "error[usage]: the number of processes is wrong" in capsys.readouterr().err


def test_a_rank_of_a_world_does_not_start_another(
    run_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    assert main(["train", str(run_file), "--nproc", "2"]) == 78
    assert "remove --nproc: torchrun or srun starts the processes" in capsys.readouterr().err


def test_run_yaml_alone_repeats_the_run(run_file: Path, tmp_path: Path) -> None:
    overrides = ["--set", "schedule.steps=3", "--set", "schedule.drops=[]"]
    (ending,) = run_ranks(1, dsmath, ["train", str(run_file), *overrides])
    assert ending.code == 0
    written = tmp_path / "run" / "run.yaml"
    assert load(written) == load(run_file, overrides[1::2])
    (ending,) = run_ranks(1, dsmath, ["train", str(written), "--set", f"output={tmp_path / 'again'}"])
    assert ending.code == 0
    assert numbers_of(rows_of(tmp_path / "again")) == numbers_of(rows_of(tmp_path / "run"))


def test_killed_ranks_are_not_reported_as_running(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = RunDirectory(run_file.parent / "run")

    def killed(_arguments: object, _ranks: int) -> int:
        directory.write_status("running", None, 3)
        return 70

    monkeypatch.setattr(start, "run_ranks", killed)
    assert main(["train", str(run_file), "--nproc", "2"]) == 70
    status = status_of(directory.root)
    assert (status["state"], status["exit_code"]) == ("failed", 70)


def test_every_rank_gets_the_flags_of_the_run(run_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[list[str]] = []

    def record(arguments: list[str], _ranks: int) -> int:
        given.append(arguments)
        return 0

    monkeypatch.setattr(start, "run_ranks", record)
    assert main(["train", str(run_file), "--nproc", "2", "--set", "seed=3", "--resume", "last-good"]) == 0
    assert given == [["train", str(run_file), "--set=seed=3", "--resume=last-good"]]


def dsmath_with_slow_status(arguments: list[str], output: Path) -> tuple[Ending, Row]:
    """Stopped after step 1 while rank 0 writes slowly; also STATUS.json at the time when this rank may leave."""
    fault = "terminate:step.logged:rank=0:step=1 delay:file.before_rename:rank=0"
    ending = with_fault(fault, dsmath, arguments)
    return ending, status_of(output)


def test_no_rank_exits_with_75_before_the_status_is_written(run_file: Path) -> None:
    """torchrun ends the other ranks as soon as one exits with a code other than 0."""
    output = run_file.parent / "run"
    left = run_ranks(2, dsmath_with_slow_status, ["train", str(run_file)], output)
    assert [(ending.code, status["state"]) for ending, status in left] == [(75, "stopped")] * 2


@pytest.mark.parametrize("rank", [0, 1])
def test_the_rank_that_fails_first_reports_for_all(rank: int, run_file: Path) -> None:
    fault = f"raise:step.draw:rank={rank}:step=1"  # an error that no code expects, in the batches of step 2
    endings = run_ranks(2, with_fault, fault, dsmath, ["train", str(run_file)])
    assert [ending.code for ending in endings] == [70, 70]
    assert endings[rank].err.count("Traceback") == 1
    assert f"InjectedFaultError: DSMATH_FAULT is {fault}" in endings[rank].err
    assert endings[1 - rank].err.splitlines()[0].startswith(f"rank {1 - rank} ends because another rank failed")
    assert "Traceback" not in endings[1 - rank].err
    status = status_of(run_file.parent / "run")
    assert (status["state"], status["exit_code"], status["step"]) == ("failed", 70, 1)
    assert status["message"] == f"InjectedFaultError: DSMATH_FAULT is {fault}"
