"""The process that writes while its parent goes on: what it writes, how it fails, and when it ends."""

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

from megatron_dsmath.checkpoint import store
from megatron_dsmath.checkpoint.background_writer import BackgroundWriter
from megatron_dsmath.checkpoint.writer_process import NICENESS
from megatron_dsmath.errors import CheckpointError, InternalError
from tests.checkpoint.test_store import manifest

CONTENT = os.urandom(10_000_019)  # more than two blocks, and no whole number of them
SMALL = b"present already"


@pytest.fixture
def writer() -> Iterator[BackgroundWriter]:
    opened = BackgroundWriter(len(CONTENT))
    opened.memory[:] = CONTENT
    yield opened
    opened.close()


def process_of(writer: BackgroundWriter) -> psutil.Process:
    return psutil.Process(writer._process.pid)


def test_what_lies_in_memory_is_written_and_everything_is_hashed(writer: BackgroundWriter, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(SMALL)
    for _ in range(2):  # the same memory serves every save
        writer.ask("write", folder=str(tmp_path), staged={"a": 7, "b": len(CONTENT) - 7}, present=["small"])
        answer = writer.answer()
        assert answer.refused is None
        assert ((tmp_path / "a").read_bytes(), (tmp_path / "b").read_bytes()) == (CONTENT[:7], CONTENT[7:])
        contents = {"a": CONTENT[:7], "b": CONTENT[7:], "small": SMALL}
        assert answer.done == {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in contents.items()
        }


def test_a_file_of_whole_pages_and_a_rest_is_written_to_its_last_byte(writer: BackgroundWriter, tmp_path: Path) -> None:
    writer.ask(
        "write", folder=str(tmp_path), staged={"a": len(CONTENT)}, present=[]
    )  # past the cache, but for the rest
    assert writer.answer().refused is None
    assert (tmp_path / "a").read_bytes() == CONTENT


def test_the_parent_never_waits_to_know_whether_it_is_busy(writer: BackgroundWriter, tmp_path: Path) -> None:
    assert not writer.is_busy
    assert writer.answer() == (None, None)
    process_of(writer).suspend()
    writer.ask("write", folder=str(tmp_path), staged={"a": 9}, present=[])
    assert writer.is_busy
    process_of(writer).resume()
    assert writer.answer().refused is None
    assert not writer.is_busy


def test_it_gives_way_to_its_parent_and_imports_no_torch(writer: BackgroundWriter, tmp_path: Path) -> None:
    (tmp_path / "small").write_bytes(SMALL)
    writer.ask("write", folder=str(tmp_path), staged={"a": 9}, present=["small"])
    writer.answer()
    assert process_of(writer).nice() == os.nice(0) + NICENESS
    assert os.getsid(process_of(writer).pid) == os.getsid(0)  # else Linux gives its session as much as the parent's
    assert not [entry.path for entry in process_of(writer).memory_maps() if "torch" in entry.path]


def test_what_cannot_be_written_is_the_parents_output_error(writer: BackgroundWriter, tmp_path: Path) -> None:
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


def test_a_writer_that_is_killed_is_named_with_its_signal(writer: BackgroundWriter, tmp_path: Path) -> None:
    process_of(writer).suspend()
    writer.ask("write", folder=str(tmp_path), staged={"a": 9}, present=[])
    process_of(writer).kill()
    refused = writer.answer().refused
    assert refused is not None
    assert refused.what == "the process that writes checkpoints has ended"
    assert "SIGKILL" in str(refused.found)


def test_what_nobody_foresaw_is_one_error_of_the_parent_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DSMATH_FAULT", "raise:writer.before_file:count=1")
    writer = BackgroundWriter(9)
    writer.ask("write", folder=str(tmp_path), staged={"a": 9}, present=[])
    refused = writer.answer().refused
    assert isinstance(refused, InternalError)
    assert "InjectedFaultError" in str(refused.found)
    assert "faults.py:" in str(refused.where)
    writer.ask("write", folder=str(tmp_path), staged={"a": 9}, present=[])
    assert writer.answer().refused is None
    writer.close()
    assert capfd.readouterr().err == ""


def test_files_that_are_not_those_of_the_manifest_are_no_fault_of_the_disk(
    writer: BackgroundWriter, tmp_path: Path
) -> None:
    incomplete = store.begin(tmp_path, 4)
    (incomplete / "a").write_bytes(b"1")
    facts = manifest(4, incomplete).to_json()
    (incomplete / "a").write_bytes(b"12")
    writer.ask("publish", folder=str(incomplete), manifest=facts, keep=2, sync=[])
    assert isinstance(writer.answer().refused, CheckpointError)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1])
def test_it_outlives_the_signals_that_ask_a_run_to_stop(
    number: signal.Signals, writer: BackgroundWriter, tmp_path: Path
) -> None:
    for _ in range(2):  # as it is born, and once it listens
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


def test_it_dies_with_its_parent(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    deadline = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.01)
