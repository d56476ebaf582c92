"""A rank that hangs is named and the job ends with 70, within the timeout of the section."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.files.processes import process_start
from megatron_dsmath.supervision import watchdog
from megatron_dsmath.supervision.heartbeat import hang_error
from megatron_dsmath.supervision.watchdog import Watchdog
from megatron_dsmath.training.rank_progress import RankProgress
from megatron_dsmath.training.run_directory import RunDirectory
from tests.support.corpora import write_run_file
from tests.support.job import Ending, run_job
from tests.support.runs import run_config
from tests.training.ranks import status_of

STEP_SECONDS, SETUP_SECONDS = 3.0, 12.0


def ending_of(fault: str, inputs: Path, folder: Path, **overrides: Any) -> Ending:
    """How two ranks of `dsmath train` end where one has a fault; its run's directory is `folder/run`."""
    timeouts = {
        "guard__setup_timeout_seconds": SETUP_SECONDS,
        "guard__step_timeout_seconds": STEP_SECONDS,
        "guard__save_timeout_seconds": STEP_SECONDS,
    }
    return run_job(write_run_file(inputs, folder / "run", folder / "run.yaml", **timeouts, **overrides), 2, fault)


@pytest.mark.fault(
    "R10",
    injected="a rank that is stopped or sleeps forever; its report is examined",
    where="DP2, TP2, PP2",
    holds="the Python stacks of every rank that still runs; step, microbatch and stage of the rank that hangs",
)
@pytest.mark.parametrize(
    ("fault", "layout", "where", "step"),
    [
        (
            "stop:step.begin:rank=1:step=2",
            {},
            r"rank 1 no longer runs; \(data 1 of 2\) on .* was in step after step 2, at its beginning at its last",
            2,
        ),
        (
            "hang:microbatch.begin:rank=1:count=6",
            {"parallel__pipeline": 2},
            r"rank 1 \(pipeline stage 1 of 2\) .* in step after step 1, microbatch 2 of 4",
            1,
        ),
        pytest.param(
            "hang:validation.begin:rank=0",
            {"parallel__tensor": 2},
            r"rank 0 \(tensor 0 of 2\) .* validation after step 4",
            3,
            marks=pytest.mark.long,
        ),
        ("hang:save.begin:rank=1:step=3", {}, r"rank 1 \(data 1 of 2\) .* in save after step 3", 3),
    ],
    ids=["stopped in a step", "in a microbatch", "in a validation", "in a save"],
)
def test_the_rank_that_hangs_is_named_with_the_stacks_of_all_that_still_run(
    fault: str, layout: dict[str, Any], where: str, step: int, inputs: Path, tmp_path: Path
) -> None:
    codes, _, said = ending_of(fault, inputs, tmp_path, **layout)
    culprit = int(re.search(r"rank=(\d)", fault)[1])  # type: ignore[index]
    stopped = fault.startswith("stop")
    assert codes[1 - culprit] == 70
    assert codes[culprit] == (-9 if stopped else 70)
    assert said.count("error[internal]: a rank hangs") == 1
    named = re.search("where: +(.*)", said)
    assert named is not None
    assert re.search(where, named[1]), named[1]
    assert f"rank {1 - culprit} " not in named[1]
    stacks = sorted(path.name for path in tmp_path.glob("run/logs/hang_*/stacks_rank_*.txt"))
    assert stacks == [f"stacks_rank_{rank}.txt" for rank in range(2) if not (stopped and rank == culprit)]
    for path in tmp_path.glob("run/logs/hang_*/stacks_rank_*.txt"):
        assert "in train" in path.read_text()
    status = status_of(tmp_path / "run")
    assert (status["state"], status["exit_code"], status["step"]) == ("failed", 70, step)
    assert f"rank {culprit} " in status["message"]


@pytest.fixture
def caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watchdog:
    """The watchdog of rank 0 of 2, which is not started; rank 1 is written by hand."""
    monkeypatch.setattr(watchdog.os, "_exit", lambda code: None)
    directory = RunDirectory(tmp_path)
    directory.create()
    dog = Watchdog(run_config().guard, directory, RankProgress(), 0, 2)
    dog._folder.mkdir(parents=True)
    return dog


def write_heartbeat(dog: Watchdog, pid: int, *, answers: bool, **more: Any) -> None:
    """A heartbeat of rank 1, of the step after the first."""
    facts = {**beat(1, 5), "pid": pid, "host": socket.gethostname(), "process_start": process_start(pid), **more}
    (dog._folder / "rank_1.json").write_text(json.dumps({**facts, "answers": answers}))


@pytest.fixture
def peer() -> Iterator[subprocess.Popen[bytes]]:
    """A process of this machine that sleeps."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def test_a_stopped_rank_is_ended_without_waiting_for_its_answer(
    caller: Watchdog, peer: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "ANSWER_SECONDS", 60.0)
    peer.send_signal(signal.SIGSTOP)
    write_heartbeat(caller, peer.pid, answers=False)
    started = time.monotonic()
    caller._report_hang(61.0)
    assert time.monotonic() - started < 10.0
    assert peer.wait(10.0) == -signal.SIGKILL
    assert "rank 1 no longer runs" in capsys.readouterr().err


def test_an_answer_is_waited_for_and_no_longer(
    caller: Watchdog, peer: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "ANSWER_SECONDS", 60.0)
    write_heartbeat(caller, peer.pid, answers=False)
    threading.Timer(0.5, write_heartbeat, [caller, peer.pid], {"answers": True}).start()
    started = time.monotonic()
    caller._report_hang(61.0)
    assert 0.4 < time.monotonic() - started < 10.0
    assert peer.poll() is None
    assert "rank 1 on" in capsys.readouterr().err


def test_a_rank_that_runs_and_never_answers_is_given_up(
    caller: Watchdog, peer: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(watchdog, "ANSWER_SECONDS", 0.5)
    write_heartbeat(caller, peer.pid, answers=False)
    caller._report_hang(61.0)
    assert "rank 1 no longer runs" in capsys.readouterr().err


@pytest.mark.parametrize(("marks", "where"), [(6, "validation after step 4, at its beginning"), (5, "step after step")])
def test_a_section_entered_since_the_last_heartbeat_is_where_a_rank_is(
    marks: int, where: str, caller: Watchdog, capsys: pytest.CaptureFixture[str]
) -> None:
    write_heartbeat(caller, 1, answers=True)
    entered = {"marks": marks, "section": "validation", "step": 4, "topology": "data 1 of 2"}
    (caller._folder / "rank_1.entered").write_text(json.dumps(entered) + " " * 50)
    caller._report_hang(61.0)
    assert where in capsys.readouterr().err


def test_each_section_is_recorded_when_it_is_entered(caller: Watchdog) -> None:
    progress = caller._progress
    progress.on_enter = caller._write_entered_section
    for section, step in (("validation", 1234), ("step", 7)):
        progress.enter(section, step)  # type: ignore[arg-type]
        found = json.loads((caller._folder / "rank_0.entered").read_text())
        assert (found["section"], found["step"], found["marks"]) == (section, step, progress.marks)
    caller.stop()


@pytest.mark.long
def test_a_rank_that_hangs_in_setup_is_named_by_the_others(inputs: Path, tmp_path: Path) -> None:
    assert ending_of("stop:setup.begin:rank=1", inputs, tmp_path).codes == [
        70,
        None,
    ]  # its process is unknown; the process that started the ranks ends it
    assert "rank 1 never wrote a heartbeat" in status_of(tmp_path / "run")["message"]


def beat(step: int, marks: int, waits_in: str | None = None, section: str = "step") -> dict[str, Any]:
    place = {"topology": "", "host": "node", "pid": 7, "at": "training/step.py:1 in run", "detail": "microbatch 2 of 4"}
    return {"step": step, "marks": marks, "waits_in": waits_in, "section": section, "answers": True, **place}


@pytest.mark.parametrize(
    ("beats", "silent", "named"),
    [
        ({0: beat(5, 40, "all_reduce"), 1: beat(5, 38)}, [], ["rank 1"]),
        ({0: beat(5, 40, "all_reduce"), 1: beat(4, 99, "recv")}, [], ["rank 1"]),
        ({0: beat(5, 40, "all_reduce"), 1: beat(5, 40)}, [], ["rank 1"]),
        ({0: beat(5, 40, "all_reduce"), 1: beat(5, 40, "all_reduce")}, [], ["rank 0", "rank 1"]),
        ({0: beat(5, 40), 1: beat(5, 41)}, [1], ["rank 1"]),
        ({0: beat(0, 1, section="setup")}, [], ["rank 1"]),
    ],
    ids=["behind", "a step behind", "not in a collective", "a deadlock", "silent", "no heartbeat"],
)
def test_the_rank_the_others_wait_for_is_the_one_named(
    beats: dict[int, Any], silent: list[int], named: list[str], tmp_path: Path
) -> None:
    where = str(hang_error(beats, silent, 2, 61.0, tmp_path).where)
    assert re.findall(r"rank \d", where) == named


def test_the_limit_is_that_of_the_section_and_ten_median_steps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = run_config(guard__setup_timeout_seconds=900.0, guard__save_timeout_seconds=500.0)
    progress = RankProgress()
    dog = Watchdog(run.guard, RunDirectory(tmp_path), progress, 0, 1)
    clock = [0.0]
    monkeypatch.setattr("megatron_dsmath.training.rank_progress.time.monotonic", lambda: clock[0])
    progress.enter("setup", 0)
    assert dog.limit_seconds() == 900.0
    for step, seconds in enumerate([50.0, 2.0, 3.0]):  # the first compiles; the median is 3
        progress.enter("step", step)
        assert dog.limit_seconds() == (900.0 if step == 0 else max(60.0, 10 * [50.0, 26.0][step - 1]))
        clock[0] += seconds
    progress.enter("save", 3)
    assert dog.limit_seconds() == 500.0
    progress.enter("validation", 3)
    assert dog.limit_seconds() == 60.0  # ten medians are 30
    progress.enter("evaluation", 3)
    assert dog.limit_seconds() == 500.0
    progress.enter("end", 3)
    assert dog.limit_seconds() == 500.0


def test_time_in_which_the_whole_job_was_suspended_does_not_count(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """As after `scontrol suspend`: the clock advanced by an hour, the thread woke up twice."""
    dog = Watchdog(run_config().guard, RunDirectory(tmp_path), RankProgress(), 0, 1)
    judged: list[float] = []
    monkeypatch.setattr(dog, "_report_hang", judged.append)
    woken, clock = iter([False, False, True]), iter([0.0, 3600.0, 7200.0])
    monkeypatch.setattr(dog._stopped, "wait", lambda _: next(woken))
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: next(clock))
    dog._watch()
    assert judged == []


def test_worlds_that_run_at_the_same_time_have_different_names(monkeypatch: pytest.MonkeyPatch) -> None:
    names = set()
    for port in ("29500", "29501"):
        monkeypatch.setenv("MASTER_PORT", port)
        monkeypatch.setenv("WORLD_SIZE", "2")
        names.add(watchdog.world_name())
        monkeypatch.setenv("RANK", "1")
        names.add(watchdog.world_name())  # a rank's number does not matter
    assert len(names) == 2
