"""Two jobs on one run directory: the second is refused; a dead owner does not block the directory."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_dsmath.cli import main
from megatron_dsmath.errors import RunError
from megatron_dsmath.supervision import lock
from megatron_dsmath.supervision.lock import hold_run, require_free
from megatron_dsmath.training.run_directory import RunDirectory
from tests.support.corpora import write_run_file

HOLDER = """
import sys, time
from pathlib import Path
from megatron_dsmath.supervision.lock import hold_run
from megatron_dsmath.training.run_directory import RunDirectory
with hold_run(RunDirectory(Path(sys.argv[1]))):
    print("held", flush=True)
    sys.stdin.readline()
"""
ELSEWHERE = {"host": "node-7", "pid": 42, "process_start": "1", "job": "54321", "since": "2024-02-05 10:00:00 +0000"}


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    return directory


@pytest.fixture
def holder(directory: RunDirectory) -> Iterator[subprocess.Popen[str]]:
    """Another process of this machine that holds the directory."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "SLURM_JOB_ID": "777"},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.fault(
    "R17",
    injected="a second job on one run directory",
    where="`dsmath train`, with and without `--nproc`, `--check`",
    holds="refused before it writes anything, with host, process, job and start time of the owner",
)
def test_a_second_job_is_refused_before_it_writes_anything_and_the_owner_is_named(
    directory: RunDirectory, holder: subprocess.Popen[str], inputs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = write_run_file(inputs, directory.root, directory.root.parent / "run.yaml")
    before = everything_in(directory.root)
    for options in ([], ["--nproc", "2"], ["--check"]):
        assert main(["train", str(run_file), *options]) == 78
        said = capsys.readouterr().err
        assert "error[run]: another job has the run's directory" in said
        owner = re.search(r"process (\d+) on (\S+), SLURM job (\S+), since (\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)", said)
        assert owner is not None
        assert (int(owner[1]), owner[2], owner[3]) == (holder.pid, socket.gethostname(), "777")
        assert abs(time.time() - time.mktime(time.strptime(owner[4], "%Y-%m-%d %H:%M:%S"))) < 120
    assert everything_in(directory.root) == before


@pytest.mark.fault(
    "R17",
    injected="SIGKILL to the owner",
    where="one machine",
    holds="the directory is free at once",
)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_owner_does_not_block_the_directory(
    number: signal.Signals, directory: RunDirectory, holder: subprocess.Popen[str]
) -> None:
    with pytest.raises(RunError):
        require_free(directory)
    holder.send_signal(number)
    holder.wait()
    started = time.monotonic()
    with hold_run(directory):
        assert json.loads(directory.lock.read_text())["pid"] == os.getpid()
    assert time.monotonic() - started < 2


def test_an_owner_that_exits_normally_releases_the_lock(directory: RunDirectory, holder: subprocess.Popen[str]) -> None:
    holder.communicate("\n")
    assert directory.lock.read_text() == ""
    require_free(directory)


def test_a_directory_that_was_never_used_is_free_and_looking_writes_nothing(tmp_path: Path) -> None:
    require_free(RunDirectory(tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "LEASE_SECONDS", 1.0)


@pytest.mark.usefixtures("short_lease")
def test_an_owner_on_another_machine_that_touches_its_lease_is_left_alone(directory: RunDirectory) -> None:
    directory.lock.write_text(json.dumps(ELSEWHERE))
    over = threading.Event()

    def touch() -> None:
        while not over.wait(0.1):
            os.utime(directory.lock)

    thread = threading.Thread(target=touch)
    thread.start()
    try:
        with pytest.raises(RunError, match="process 42 on node-7, SLURM job 54321, since 2024-02-05 10:00:00"):
            require_free(directory)
    finally:
        over.set()
        thread.join()


@pytest.mark.fault(
    "R17",
    injected="a dead owner on another machine, with clocks a day apart",
    where="a lease on a shared disk",
    holds="free after 20 s without a touch",
)
@pytest.mark.usefixtures("short_lease")
@pytest.mark.parametrize("age_seconds", [0, 86400, -86400])
def test_an_owner_that_no_longer_touches_its_lease_is_dead_whatever_the_clocks_show(
    age_seconds: int, directory: RunDirectory
) -> None:
    directory.lock.write_text(json.dumps(ELSEWHERE))
    os.utime(directory.lock, (time.time() - age_seconds,) * 2)
    with hold_run(directory):
        assert json.loads(directory.lock.read_text())["host"] == socket.gethostname()


@pytest.mark.usefixtures("short_lease")
def test_on_a_file_system_without_locks_the_process_itself_is_looked_for(
    directory: RunDirectory, holder: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(_descriptor: int, _operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with pytest.raises(RunError, match=f"process {holder.pid} on"):
        require_free(directory)
    holder.kill()
    holder.communicate()
    require_free(directory)


def test_the_owner_touches_its_lease(directory: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "TOUCH_SECONDS", 0.05)
    with hold_run(directory):
        before = directory.lock.stat().st_mtime_ns
        deadline = time.monotonic() + 10
        while directory.lock.stat().st_mtime_ns == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
