from __future__ import annotations

import errno
from pathlib import Path

import pytest

from megatron_dsmath.errors import OutputError
from megatron_dsmath.files.directories import atomic_directory, begin, delete, publish, require_writable


def test_the_directory_appears_with_all_its_files(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "deep" / "out") as folder:
        (folder / "a").write_text("a")
        assert not (tmp_path / "deep" / "out").exists()
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["out"]
    assert (tmp_path / "deep" / "out" / "a").read_text() == "a"


@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), OutputError("no")])
def test_after_an_error_the_directory_is_removed(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)), atomic_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
        raise error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_output_error_with_the_bytes_that_are_free(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"No space left on device; [\d,]+ bytes free"),
        atomic_directory(tmp_path / "out"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_target_created_in_the_meantime_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="exists already"), atomic_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("mine")
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "a").write_text("theirs")
    assert (tmp_path / "out" / "a").read_text() == "theirs"


@pytest.mark.parametrize("name", ["out", "model.v1", "a-b-1-2", "x.incomplete-y"])
def test_any_name_can_be_published(tmp_path: Path, name: str) -> None:
    assert publish(begin(tmp_path / name)) == tmp_path / name


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="a file"):
        begin(tmp_path / "out")
    with pytest.raises(OutputError, match="File exists"):
        begin(tmp_path / "out" / "deeper")


def test_a_deleted_directory_is_gone(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "a").write_text("a")
    delete(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_checking_for_a_writable_directory_leaves_no_file(tmp_path: Path) -> None:
    assert require_writable(tmp_path / "deep" / "out", 1) == tmp_path
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(OutputError, match="/proc"):
        require_writable(Path("/proc/deep/out"), 1)
