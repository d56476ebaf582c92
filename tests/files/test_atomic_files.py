from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_dsmath.data.indexed.dataset import IndexedDataset, IndexedWriter
from megatron_dsmath.errors import OutputError
from megatron_dsmath.files.atomic_files import AtomicFiles, append_row, replace_text, require_free_space
from tests.support.datasets import DOCUMENTS, files_of, write_ours, write_theirs


def test_no_file_is_left_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), IndexedWriter(tmp_path / "corpus", np.dtype(np.int32)) as writer:
        writer.add_document([1])
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_the_old_dataset_stays_complete_until_the_new_one_is(tmp_path: Path) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    before = files_of(prefix)
    with IndexedWriter(prefix, np.dtype(np.int32)) as writer:
        writer.add_document([1])
        assert files_of(prefix) == before
    assert IndexedDataset(prefix).tokens.tolist() == [1]


def test_a_second_writer_of_a_dataset_is_refused(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "corpus", np.dtype(np.int32)) as writer:
        with pytest.raises(OutputError, match="another process is writing"):
            IndexedWriter(tmp_path / "corpus", np.dtype(np.int32))
        writer.add_document([1])
    assert IndexedDataset(tmp_path / "corpus").token_count == 1


def test_the_files_of_a_killed_writer_are_overwritten(tmp_path: Path) -> None:
    prefix = tmp_path / "corpus"
    code = f"""
import os, signal, numpy
from megatron_dsmath.data.indexed.dataset import IndexedWriter
with IndexedWriter({str(prefix)!r}, numpy.dtype("int32")) as writer:
    writer.add_document(range(1_000_000))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert {file.suffix for file in tmp_path.iterdir()} == {".partial"}
    write_ours(prefix, DOCUMENTS)
    assert files_of(prefix) == files_of(write_theirs(tmp_path / "theirs", DOCUMENTS))
    assert not list(tmp_path.glob("*.partial"))


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    """A limit on the size of a file simulates a full disk: the system refuses the same call."""
    code = f"""
import resource, signal, numpy
from megatron_dsmath.data.indexed.dataset import IndexedWriter
from megatron_dsmath.errors import DsmathError, show
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with IndexedWriter({str(tmp_path / "corpus")!r}, numpy.dtype("int32")) as writer:
        writer.add_document(numpy.arange(10_000_000))
except DsmathError as error:
    raise SystemExit(show(error))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (78, "")
    assert "error[output]" in run.stderr
    assert str(tmp_path) in run.stderr
    assert "bytes free" in run.stderr
    assert "40,000,000 bytes for corpus.bin" in run.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written") as caught:
        IndexedWriter(tmp_path / "file" / "corpus", np.dtype(np.int32))
    assert caught.value.where == tmp_path / "file"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_user_is_one_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    child = os.fork()
    if child == 0:
        status = 0
        try:
            os.setuid(65_534)  # the user without rights
            IndexedWriter(tmp_path / "corpus", np.dtype(np.int32))
        except OutputError:
            status = 78
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 78
    assert not list(tmp_path.iterdir())


def test_an_output_larger_than_the_disk_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="does not fit") as caught:
        require_free_space(tmp_path, 1 << 60)
    assert (caught.value.where, caught.value.expected) == (tmp_path, "1,152,921,504,606,846,976 bytes free")


@pytest.mark.parametrize("durable", [False, True])
def test_text_replaces_a_file_and_no_temporary_file_is_left(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "STATUS.json"
    for text in ("first\n", "second: 数学\n"):
        replace_text(path, text, durable=durable)
        assert path.read_text(encoding="utf-8") == text
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_that_cannot_be_replaced_keeps_its_text(
    tmp_path: Path, durable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "STATUS.json"
    path.write_text("before")

    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(OutputError, match="No space left on device"):
        replace_text(path, "after", durable=durable)
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_rows_are_appended_one_per_line(tmp_path: Path) -> None:
    for step in (1, 2):
        append_row(tmp_path / "rows.jsonl", {"step": step})
    assert (tmp_path / "rows.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    with pytest.raises(OutputError, match="Is a directory"):
        append_row(tmp_path, {"step": 3})


def test_a_set_of_files_appears_at_the_end_of_its_block_and_not_after_an_error(tmp_path: Path) -> None:
    paths = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(KeyboardInterrupt), AtomicFiles(*paths) as (first, _):
        first.write(b"1")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with AtomicFiles(*paths) as (first, second):
        first.write(b"1")
        second.write(b"2")
        assert not any(path.exists() for path in paths)
    assert [path.read_bytes() for path in paths] == [b"1", b"2"]
