from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from megatron_dsmath.data.indexed import dataset as indexed
from megatron_dsmath.data.indexed.dataset import IndexedDataset
from megatron_dsmath.data.indexed.validation_note import is_noted, marks_of, write_note
from megatron_dsmath.errors import IndexedDatasetError
from tests.support.datasets import DOCUMENTS, write_ours


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """One entry for each opening: whether the index was known to be sound. Every index is large enough for a note."""
    known: list[bool] = []
    read_index = indexed.read_index

    def read(path: Path, bin_bytes: int, *, known_sound: bool) -> object:
        known.append(known_sound)
        return read_index(path, bin_bytes, known_sound=known_sound)

    monkeypatch.setattr(indexed, "NOTED_FROM_BYTES", 0)
    monkeypatch.setattr(indexed, "read_index", read)
    return known


def test_an_index_is_checked_once(tmp_path: Path, checks: list[bool]) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    opened = [IndexedDataset(prefix) for _ in range(3)]
    assert checks == [False, True, True]
    assert {dataset.token_count for dataset in opened} == {8}


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_file_that_was_touched_is_checked_again(tmp_path: Path, checks: list[bool], suffix: str) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    IndexedDataset(prefix)
    os.utime(prefix.with_suffix(suffix), ns=(1, 1))
    IndexedDataset(prefix)
    assert checks == [False, False]


def test_a_file_of_another_size_is_refused_whatever_the_note_says(tmp_path: Path, checks: list[bool]) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    IndexedDataset(prefix)
    with prefix.with_suffix(".idx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(IndexedDatasetError):
        IndexedDataset(prefix)


def test_an_unsound_index_is_never_noted(tmp_path: Path, checks: list[bool]) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    lengths = np.memmap(prefix.with_suffix(".idx"), np.int32, "r+", offset=34, shape=(3,))
    lengths[0] = -1
    lengths.flush()
    for _ in range(2):
        with pytest.raises(IndexedDatasetError):
            IndexedDataset(prefix)
    assert checks == [False, False]
    assert not Path(f"{prefix}.validated").exists()


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_note_says_nothing(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "note").write_bytes(content)
    assert not is_noted(tmp_path / "note", {".bin": [1, 1]})


def test_a_folder_that_cannot_be_written_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    write_note(tmp_path / "absent" / "note", marks_of([tmp_path / "file"]))
    assert list(tmp_path.iterdir()) == [tmp_path / "file"]


def test_a_small_index_leaves_no_note(tmp_path: Path) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    IndexedDataset(prefix)
    assert {path.suffix for path in tmp_path.iterdir()} == {".bin", ".idx", ".json"}
