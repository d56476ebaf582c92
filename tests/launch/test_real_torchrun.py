"""launch/torchrun.sh with the real torchrun: it costs some 20 s to start, so the stand-ins have most of the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from megatron_dsmath.training.run_directory import RunDirectory
from tests.launch.stand_ins import LAUNCH
from tests.support.corpora import write_inputs, write_run_file
from tests.training.ranks import status_of

pytestmark = pytest.mark.long
PATIENCE_SECONDS = 240
RUN = {"schedule__steps": 10_000, "validation__every_steps": 0, "schedule__drops": []}


class Launched:
    """The launcher with two ranks, in a process group of its own."""

    def __init__(self, folder: Path, **overrides: object) -> None:
        inputs = write_inputs(folder)
        self.directory = RunDirectory(folder / "run")
        run_file = write_run_file(inputs, self.directory.root, folder / "run.yaml", **RUN, **overrides)
        environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            ["bash", str(LAUNCH / "torchrun.sh"), str(run_file), "--nproc", "2"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ranks(self) -> list[psutil.Process]:
        """The workers, once the run is under way, in the order of their ranks."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.directory.last_step() < 3:
            assert self.process.poll() is None, self.process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.1)
        children = psutil.Process(self.process.pid).children(recursive=True)
        workers = [child for child in children if "megatron_dsmath" in child.cmdline() and "RANK" in child.environ()]
        return sorted(workers, key=lambda worker: int(worker.environ()["RANK"]))

    def end(self) -> tuple[int, str]:
        _, said = self.process.communicate(timeout=PATIENCE_SECONDS)
        return self.process.returncode, said


@pytest.mark.fault(
    "R8",
    injected="SIGUSR1 to torchrun itself, and two signals one after the other",
    where="torchrun, DP2",
    holds="as for a signal to a rank; the launcher exits with 75 although torchrun exits with 1",
)
@pytest.mark.parametrize(
    "signals", [[signal.SIGUSR1], [signal.SIGTERM, signal.SIGTERM], [signal.SIGUSR1, signal.SIGTERM]], ids=str
)
def test_a_signal_to_torchrun_saves_and_ends_with_75(signals: list[signal.Signals], tmp_path: Path) -> None:
    launched = Launched(tmp_path)
    launched.ranks()
    torchrun = psutil.Process(launched.process.pid).children()[0]
    for number in signals:
        torchrun.send_signal(number)
        time.sleep(0.2)  # torchrun is in its handler, and the ranks before the end of their step or in their save
    code, said = launched.end()
    assert code == 75, said
    status = status_of(launched.directory.root)
    assert status["state"] == "stopped"
    assert (launched.directory.checkpoints / f"step_{status['step']}" / "MANIFEST.json").is_file()
    assert launched.directory.lock.read_text() == ""


@pytest.mark.fault("R10")
def test_a_rank_that_was_stopped_is_named_and_ended_and_the_launcher_exits_with_70(tmp_path: Path) -> None:
    limits = {"guard__step_timeout_seconds": 5.0, "guard__save_timeout_seconds": 5.0}
    launched = Launched(tmp_path, **limits)
    ranks = launched.ranks()
    ranks[1].send_signal(signal.SIGSTOP)
    started = time.monotonic()
    code, said = launched.end()
    assert code == 70, said
    assert time.monotonic() - started < 60  # torchrun would wait for it for 270 s, gloo for 30 min
    assert "rank 1 no longer runs" in status_of(launched.directory.root)["message"]
    assert not ranks[1].is_running()
