"""The process that starts the ranks, tested with scripts in place of ranks; tests/pipeline has real ranks."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megatron_dsmath.files.processes import STOP_SIGNALS
from megatron_dsmath.supervision import local_ranks
from megatron_dsmath.supervision.local_ranks import PARENT, run_ranks

PYTHON = sys.executable
START_RANKS = """
import sys
from megatron_dsmath.supervision.local_ranks import run_ranks
sys.executable = {executable!r}
run_ranks([], 2)
"""
BEGINNING = f"""#!{PYTHON}
import os, signal, sys, time
from pathlib import Path
rank = int(os.environ["RANK"])
here = Path(__file__).parent
"""


@pytest.fixture
def each_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Takes what every rank does in place of `python -m megatron_dsmath`."""

    def does(lines: str) -> None:
        script = tmp_path / "rank"
        script.write_text(BEGINNING + lines)
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setattr(sys, "executable", str(script))

    return does


@pytest.mark.parametrize(
    ("codes", "common"),
    [
        ([0, 0], 0),
        ([75, 75], 75),
        ([78, 78], 78),
        ([70, 78], 78),  # the one refused, the other found it gone
        ([0, 1], 70),  # whatever else a rank dies of, a restart may help
        ([75, 70], 70),
    ],
)
def test_ranks_end_with_one_code(codes: list[int], common: int, each_rank: Callable[[str], None]) -> None:
    each_rank(f"sys.exit({codes}[rank])")
    assert run_ranks([], 2) == common


def test_a_rank_that_is_killed_is_named(each_rank: Callable[[str], None], capfd: pytest.CaptureFixture[str]) -> None:
    each_rank("if rank == 1: os.kill(os.getpid(), signal.SIGKILL)\nsys.exit(70)")
    assert run_ranks([], 2) == 70
    assert "rank 1 was killed by SIGKILL" in capfd.readouterr().err


def test_ranks_that_hang_after_another_failed_are_ended(
    each_rank: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_ranks, "GRACE_SECONDS", 0.2)
    each_rank("if rank == 1: sys.exit(78)\ntime.sleep(100)")
    started = time.monotonic()
    assert run_ranks([], 2) == 78
    assert time.monotonic() - started < 50


def test_ranks_die_with_the_process_that_started_them(each_rank: Callable[[str], None], tmp_path: Path) -> None:
    each_rank(
        "from megatron_dsmath.files.processes import end_with_parent\n"
        f"end_with_parent(int(os.environ[{PARENT!r}]))\n"
        '(here / f"started_{rank}").write_text(str(os.getpid()))\n'
        "time.sleep(600)"
    )
    parent = subprocess.Popen([PYTHON, "-c", START_RANKS.format(executable=sys.executable)], stderr=subprocess.DEVNULL)
    while len([file for file in tmp_path.glob("started_*") if file.read_text()]) < 2:
        time.sleep(0.02)
    ranks = [psutil.Process(int(file.read_text())) for file in tmp_path.glob("started_*")]
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(ranks, timeout=60)
    for rank in alive:
        rank.kill()
    assert alive == []


def test_each_rank_gets_its_number_and_a_common_rendezvous(each_rank: Callable[[str], None], tmp_path: Path) -> None:
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", PARENT, "DSMATH_RENDEZVOUS")
    each_rank(f'(here / f"{{rank}}").write_text(" ".join([*sys.argv[1:], *(os.environ[name] for name in {names})]))')
    assert run_ranks(["train", "run.yaml"], 3) == 0
    told = [(tmp_path / f"{rank}").read_text().rpartition(" ") for rank in range(3)]
    for rank, (place, _, _) in enumerate(told):
        assert place == f"-m megatron_dsmath train run.yaml {rank} {rank} 3 {os.getpid()}"
    assert len({rendezvous for _, _, rendezvous in told}) == 1


@pytest.mark.parametrize("number", STOP_SIGNALS, ids=lambda number: number.name)
def test_a_signal_reaches_every_rank(number: signal.Signals, each_rank: Callable[[str], None], tmp_path: Path) -> None:
    each_rank(
        "from megatron_dsmath.supervision.stop_request import StopRequest\n"
        "stop = StopRequest()\n"
        "stop.listen()\n"
        '(here / f"listening_{rank}").touch()\n'
        "while not stop.made: time.sleep(0.02)\n"
        f"sys.exit(75 if stop.signal == {number.name!r} else 1)"
    )
    before = signal.getsignal(number)

    def ask_to_stop() -> None:
        while len(list(tmp_path.glob("listening_*"))) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    asking = threading.Thread(target=ask_to_stop, daemon=True)
    asking.start()
    assert run_ranks([], 2) == 75
    asking.join(timeout=30)
    assert signal.getsignal(number) is before
