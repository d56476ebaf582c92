"""The process that writes checkpoints: the files it writes, its errors, and its end."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from megatron_dsmath.checkpoint.background_writer import BackgroundWriter
from megatron_dsmath.checkpoint.writer_process import NICENESS
from megatron_dsmath.errors import CheckpointError, InternalError
from megatron_dsmath.files import directories
from tests.checkpoint.test_store import manifest

CONTENT = os.urandom(10_000_019)  # more than two blocks, and not a multiple of a block
SMALL = b"present already"


@pytest.fixture
def writer() -> Iterator[BackgroundWriter]:
    opened = BackgroundWriter(len(CONTENT))
    opened.memory[:] = CONTENT
    yield opened
    opened.close()


def process_of(writer: BackgroundWriter) -> psutil.Process:
    return psutil.Process(writer._process.pid)


def test_staged_files_are_written_and_all_files_are_hashed(writer: BackgroundWriter, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(SMALL)
    for _ in range(2):  # all saves use the same memory
        writer.ask("write", folder=str(tmp_path), staged={"a": 7, "b": len(CONTENT) - 7}, present=["small"])
        answer = writer.answer()
        assert answer.refused is None
        assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (CONTENT[:7], CONTENT[7:])
        contents = {"a": CONTENT[:7], "b": CONTENT[7:], "small": SMALL}
        assert answer.done == {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()
        }


def test_a_file_that_ends_within_a_page_is_written_completely(writer: BackgroundWriter, tmp_path: Path) -> None:
    writer.ask(
        "write", folder=str(tmp_path), staged={"a": len(CONTENT)}, present=[]
    )  # with O_DIRECT except for the end
    assert writer.answer().refused is None
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_is_busy_does_not_wait(writer: BackgroundWriter, tmp_path: Path) -> None:
    assert not writer.is_busy
    assert writer.answer() == (None, None)
    process_of(writer).suspend()
    writer.ask("write", folder=str(tmp_path), staged={"a": 9}, present=[])
    assert writer.is_busy
    process_of(writer).resume()
    assert writer.answer().refused is None
    assert not writer.is_busy


def test_the_process_has_low_priority_and_imports_no_torch(writer: BackgroundWriter, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(SMALL)
    writer.ask("write", folder=str(tmp_path), staged={"a": 9}, present=["small"])
    writer.answer()
    assert process_of(writer).nice() == os.nice(0) + NICENESS
    assert os.getsid(process_of(writer).pid) == os.getsid(0)  # sessions share CPU time equally
    assert not [entry.path for entry in process_of(writer).memory_maps() if "torch" in entry.path]


def test_a_failed_write_is_an_output_error_of_the_parent(writer: BackgroundWriter, tmp_path: Path) -> None:
    writer.ask("write", folder=str(tmp_path / "absent"), staged={"a": 9}, present=[])
    refused = writer.answer().refused
    assert refused is not None
    assert refused.what == "the output cannot be written"
    assert "No such file or directory" in str(refused.found)


def test_a_full_disk_names_the_bytes_needed_and_free(writer: BackgroundWriter, tmp_path: Path) -> None:
    process_of(writer).rlimit(psutil.RLIMIT_FSIZE, (5_000_000, 5_000_000))
    writer.ask("write", folder=str(tmp_path), staged={"a": len(CONTENT)}, present=[])
    refused = writer.answer().refused
    assert refused is not None
    assert "bytes free" in str(refused.found)
    assert f"at least {len(CONTENT):,} bytes for a" in str(refused.expected)


def test_the_error_of_a_killed_writer_contains_the_signal(writer: BackgroundWriter, tmp_path: Path) -> None:
    process_of(writer).suspend()
    writer.ask("write", folder=str(tmp_path), staged={"a": 9}, present=[])
    process_of(writer).kill()
    refused = writer.answer().refused
    assert refused is not None
    assert refused.what == "the process that writes checkpoints has ended"
    assert "SIGKILL" in str(refused.found)


def test_an_unexpected_exception_is_one_error_of_the_parent_without_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DSMATH_FAULT", "raise:writer.before_file:count=1")
    writer = BackgroundWriter(9)
    writer.ask("write", folder=str(tmp_path), staged={"a": 9}, present=[])
    refused = writer.answer().refused
    assert isinstance(refused, InternalError)
    assert "InjectedFaultError" in str(refused.found)
    assert "fault_injection.py:" in str(refused.where)
    writer.ask("write", folder=str(tmp_path), staged={"a": 9}, present=[])
    assert writer.answer().refused is None
    writer.close()
    assert capfd.readouterr().err == ""


def test_files_that_differ_from_the_manifest_are_a_checkpoint_error(writer: BackgroundWriter, tmp_path: Path) -> None:
    incomplete = directories.begin(tmp_path / "step_4")
    (incomplete / "a").write_bytes(b"1")
    facts = manifest(4, incomplete).to_json()
    (incomplete / "a").write_bytes(b"12")
    writer.ask("publish", folder=str(incomplete), manifest=facts, keep=2, sync=[])
    assert isinstance(writer.answer().refused, CheckpointError)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_signals_that_stop_a_run_do_not_end_the_process(
    number: signal.Signals, writer: BackgroundWriter, tmp_path: Path
) -> None:
    for _ in range(2):  # during its start, and later
        process_of(writer).send_signal(number)
        writer.ask("write", folder=str(tmp_path), staged={"a": 9}, present=[])
        assert writer.answer().refused is None


PARENT = """
from megatron_dsmath.checkpoint.background_writer import BackgroundWriter
writer = BackgroundWriter(100)
writer.ask("write", folder=".", staged={}, present=[])
writer.answer()
print(writer._process.pid, flush=True)
input()
"""


def test_the_process_ends_with_its_parent(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    deadline = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
