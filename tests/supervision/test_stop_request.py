"""A run that is asked to stop saves, reports it, and continues from that step."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_dsmath.files.processes import STOP_SIGNALS, stop_signals_blocked
from tests.support.corpora import write_run_file
from tests.support.ranks import run_ranks
from tests.training.ranks import Row, dsmath, numbers_of, rows_of, status_of, with_fault


@pytest.mark.parametrize(("kind", "name"), [("terminate", "SIGTERM"), ("warn", "SIGUSR1")])
def test_a_signal_stops_a_run_after_the_step_and_a_rerun_continues(
    kind: str, name: str, inputs: Path, one_process: list[Row], tmp_path: Path
) -> None:
    run_file, output = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml"), tmp_path / "run"
    (ending,) = run_ranks(1, with_fault, f"{kind}:step.logged:step=5", dsmath, ["train", str(run_file)])
    assert ending.code == 75
    assert name in ending.err
    assert (output / "checkpoints" / "step_5" / "MANIFEST.json").is_file()
    status = status_of(output)
    assert (status["state"], status["exit_code"], status["step"]) == ("stopped", 75, 5)

    (ending,) = run_ranks(1, dsmath, ["train", str(run_file)])
    assert ending.code == 0
    assert numbers_of(rows_of(output)) == numbers_of(one_process)
    assert status_of(output)["state"] == "done"


def test_a_signal_to_one_rank_stops_all(inputs: Path, tmp_path: Path) -> None:
    run_file = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml")
    endings = run_ranks(2, with_fault, "terminate:step.logged:rank=1:step=2", dsmath, ["train", str(run_file)])
    assert [ending.code for ending in endings] == [75, 75]
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2]
    assert status_of(tmp_path / "run")["exit_code"] == 75
    said = "".join(ending.err for ending in endings)
    assert said.count("error[stopped-on-request]") == 1


def test_a_signal_while_the_run_starts_is_not_lost_and_nothing_is_saved(inputs: Path, tmp_path: Path) -> None:
    run_file, output = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml"), tmp_path / "run"
    (ending,) = run_ranks(1, with_fault, "terminate:setup.begin", dsmath, ["train", str(run_file)])
    assert ending.code == 75
    assert not (output / "metrics.jsonl").exists()
    assert list((output / "checkpoints").iterdir()) == []
    assert (status_of(output)["state"], status_of(output)["step"]) == ("stopped", 0)


@pytest.mark.fault("R8")
@pytest.mark.parametrize(
    ("fault", "last_step", "checkpoints"),
    [
        ("terminate:setup.begin:rank=1", 0, []),
        ("terminate:step.begin:rank=1:step=4", 5, ["step_3", "step_5"]),
        ("terminate:validation.begin:rank=1", 4, ["step_3", "step_4"]),
        ("terminate:save.begin:rank=0:step=3", 4, ["step_3", "step_4"]),
        ("terminate:save.begin", 4, ["step_3", "step_4"]),
    ],
    ids=["setup", "step", "validation", "save", "all ranks, in the save and in the one it asks for"],
)
def test_in_every_phase_all_ranks_agree_on_one_step_and_save_once(
    fault: str, last_step: int, checkpoints: list[str], inputs: Path, tmp_path: Path
) -> None:
    run_file, output = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml"), tmp_path / "run"
    endings = run_ranks(2, with_fault, fault, dsmath, ["train", str(run_file)])
    assert [ending.code for ending in endings] == [75, 75]
    assert sum(ending.err.count("error[stopped-on-request]") for ending in endings) == 1
    assert sorted(folder.name for folder in (output / "checkpoints").glob("step_*")) == checkpoints
    assert all((output / "checkpoints" / name / "MANIFEST.json").is_file() for name in checkpoints)
    status = status_of(output)
    assert (status["state"], status["exit_code"], status["step"]) == ("stopped", 75, last_step)


def test_a_signal_after_the_last_step_finds_the_run_done(inputs: Path, tmp_path: Path) -> None:
    run_file = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml", schedule__steps=3)
    (ending,) = run_ranks(1, with_fault, "terminate:step.logged:step=3", dsmath, ["train", str(run_file)])
    assert ending.code == 0
    assert status_of(tmp_path / "run")["state"] == "done"


LISTENER = """
import sys
from megatron_dsmath.supervision.stop_request import StopRequest
print("started", flush=True)
sys.stdin.readline()
stop = StopRequest()
stop.listen()
print(stop.signal)
"""


def listener() -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", LISTENER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    return process


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_process_that_is_still_starting_holds_the_signal_until_it_listens(number: signal.Signals) -> None:
    with stop_signals_blocked():
        process = listener()
    process.send_signal(number)
    assert process.communicate("\n", timeout=30) == (f"{number.name}\n", None)


def test_without_blocking_a_process_that_is_still_starting_dies_of_the_signal() -> None:
    process = listener()
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == -signal.SIGTERM


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    ignored = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup does
    try:
        process = listener()
    finally:
        signal.signal(signal.SIGHUP, ignored)
    process.send_signal(signal.SIGHUP)
    assert process.communicate("\n", timeout=30) == ("None\n", None)
