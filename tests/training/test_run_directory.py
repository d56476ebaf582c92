from __future__ import annotations

import json
import socket
import tempfile
import time
from pathlib import Path

import pytest

from megatron_dsmath.errors import OutputError
from megatron_dsmath.files.atomic_files import append_row
from megatron_dsmath.training.run_directory import RunDirectory, keep_rows_until
from tests.training.ranks import read_rows, status_of

ROW = '{"step": %d}\n'


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    return directory


def write_metrics(directory: RunDirectory, *lines: str) -> None:
    directory.metrics.write_text("".join(lines), encoding="utf-8")


def test_status_says_all_that_a_launcher_or_a_person_needs(directory: RunDirectory) -> None:
    for step in (0, 3):
        directory.log_start(step=step)
    before = time.time()
    directory.write_status("stopped", 75, 7, "the run was asked to stop")
    status = status_of(directory.root)
    assert before <= status.pop("time_unix") <= time.time()
    assert status.pop("pid") > 0
    assert status == {
        "state": "stopped",
        "exit_code": 75,
        "step": 7,
        "restarts": 1,  # the second start
        "host": socket.gethostname(),
        "message": "the run was asked to stop",
    }


def test_the_state_is_what_was_said_last(directory: RunDirectory) -> None:
    assert directory.state() is None
    directory.write_status("running", None, 0)
    assert directory.state() == "running"
    directory.write_status("done", 0, 9)
    assert directory.state() == "done"


def test_a_kill_shows_in_the_steps_that_were_done_again(directory: RunDirectory) -> None:
    assert directory.killed_after() is None
    directory.log_start(step=0, rows_done_again=0)
    directory.log_start(step=40, rows_done_again=0)  # stopped on request
    assert directory.killed_after() is None
    directory.log_start(step=100, rows_done_again=25)
    assert directory.killed_after() == 125


def test_rows_past_the_checkpoint_and_a_torn_line_move_away(directory: RunDirectory) -> None:
    write_metrics(directory, ROW % 1, ROW % 2, ROW % 3, '{"step": 4, "lo')
    rest = directory.logs / "rest.jsonl"
    assert keep_rows_until(directory.metrics, 2, rest) == 2
    assert read_rows(directory.metrics) == [{"step": 1}, {"step": 2}]
    assert rest.read_text(encoding="utf-8") == ROW % 3 + '{"step": 4, "lo\n'


def test_a_whole_row_without_its_line_end_is_kept_and_the_next_row_has_a_line_of_its_own(
    directory: RunDirectory,
) -> None:
    write_metrics(directory, ROW % 1, (ROW % 2).rstrip())
    assert keep_rows_until(directory.metrics, 2, directory.logs / "rest.jsonl") == 0
    append_row(directory.metrics, {"step": 3})
    assert read_rows(directory.metrics) == [{"step": 1}, {"step": 2}, {"step": 3}]


def test_where_no_row_has_to_go_nothing_is_written(directory: RunDirectory) -> None:
    assert keep_rows_until(directory.metrics, 2, directory.logs / "rest.jsonl") == 0
    write_metrics(directory, ROW % 1)
    assert keep_rows_until(directory.metrics, 2, directory.logs / "rest.jsonl") == 0
    assert list(directory.logs.iterdir()) == []


@pytest.mark.parametrize(("lines", "step"), [([], 0), ([ROW % 8], 8), ([ROW % 8, '{"step": 9, "l'], 8)])
def test_the_last_step_is_that_of_the_last_whole_row(directory: RunDirectory, lines: list[str], step: int) -> None:
    write_metrics(directory, *lines)
    assert directory.last_step() == step


def test_a_directory_that_cannot_be_made_is_refused_in_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="the run's directory cannot be written"):
        RunDirectory(tmp_path / "file" / "run").create()


def test_a_disk_that_takes_no_byte_is_refused_and_keeps_no_probe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Path("/dev/full").open("wb", buffering=0) as disk, pytest.raises(OutputError, match="No space left on device"):
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: disk)
        RunDirectory(tmp_path / "run").create()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.fault(
    "R5",
    injected="STATUS.json cannot be written",
    where="the file alone",
    holds="one error; the old file is kept",
)
def test_a_status_that_cannot_be_written_leaves_the_old_one(
    directory: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.write_status("running", None, 1)
    before = sorted(directory.root.iterdir())
    monkeypatch.setenv("DSMATH_FAULT", "full:file.before_rename")
    with pytest.raises(OutputError, match="No space left on device"):
        directory.write_status("done", 0, 2)
    assert json.loads(directory.status.read_text(encoding="utf-8"))["step"] == 1
    assert sorted(directory.root.iterdir()) == before
