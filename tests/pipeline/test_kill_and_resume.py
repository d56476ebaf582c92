"""One run through the real command: killed, asked to stop, and each time continued by the same command."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from megatron_dsmath.training.run_directory import RunDirectory
from tests.support.corpora import small_run, write_inputs, write_run_file
from tests.support.ranks import run_ranks
from tests.training.ranks import dsmath, numbers_of, rows_of, status_of, train_run

PATIENCE_SECONDS = 240
RUN = {"parallel__pipeline": 2, "schedule__steps": 30, "checkpoint__every_steps": 10, "validation__every_steps": 0}


class Command:
    """`python -m megatron_dsmath train RUN.yaml --nproc 2`, and the processes of its ranks."""

    def __init__(self, run_file: Path, output: Path) -> None:
        self.directory = RunDirectory(output)
        command = [sys.executable, "-m", "megatron_dsmath", "train", str(run_file), "--nproc", "2"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.ranks: list[psutil.Process] = []

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.directory.last_step() < step:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        self.ranks = psutil.Process(self.process.pid).children()
        assert len(self.ranks) == 2

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, said


@pytest.fixture
def commands() -> Iterator[list[Command]]:
    started: list[Command] = []
    yield started
    for command in started:
        if command.process.poll() is None:
            command.process.kill()  # the ranks die with it
            command.process.communicate()


@pytest.mark.fault(
    "R1",
    injected="SIGKILL to the process that started the ranks",
    where="`dsmath train --nproc 2`, PP2",
    holds="the ranks die with it; the same command continues, bit for bit",
)
def test_a_run_killed_and_a_run_asked_to_stop_are_continued_by_the_same_command(
    tmp_path: Path, commands: list[Command]
) -> None:
    inputs, output = write_inputs(tmp_path), tmp_path / "run"
    run_file = write_run_file(inputs, output, tmp_path / "run.yaml", **RUN)

    def start() -> Command:
        commands.append(Command(run_file, output))
        return commands[-1]

    first = start()
    first.wait_for_step(12)
    assert status_of(output)["state"] == "running"
    first.process.kill()
    assert first.end()[0] == -signal.SIGKILL
    _, alive = psutil.wait_procs(first.ranks, timeout=60)
    assert alive == []

    second = start()
    second.wait_for_step(22)
    second.process.send_signal(signal.SIGUSR1)
    code, said = second.end()
    assert code == 75
    assert "SIGUSR1" in said
    status = status_of(output)
    assert (status["state"], status["exit_code"], status["restarts"]) == ("stopped", 75, 1)
    assert (output / "checkpoints" / f"step_{status['step']}" / "MANIFEST.json").is_file()

    endings = run_ranks(2, dsmath, ["train", str(run_file)])
    assert [(ending.code, ending.err) for ending in endings] == [(0, "")] * 2
    assert (status_of(output)["state"], status_of(output)["step"]) == ("done", 30)
    run_ranks(2, train_run, small_run(inputs, tmp_path / "undisturbed", **RUN))
    assert numbers_of(rows_of(output)) == numbers_of(rows_of(tmp_path / "undisturbed"))
