from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from megatron_dsmath.data.indexed import index_validation
from megatron_dsmath.data.indexed.dataset import IndexedDataset
from megatron_dsmath.data.indexed.index_validation import open_validated_dataset
from megatron_dsmath.data.mixture.corpus_shards import Shards
from megatron_dsmath.errors import IndexedDatasetError
from tests.support.datasets import DOCUMENTS, write_ours, write_theirs


@pytest.fixture(autouse=True)
def validations(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The prefix of each validation. Every index is large enough to be recorded."""
    prefixes: list[Path] = []
    validate = index_validation._open_and_validate

    def counted(prefix: Path) -> IndexedDataset:
        prefixes.append(prefix)
        return validate(prefix)

    monkeypatch.setattr(index_validation, "MIN_RECORDED_BYTES", 0)
    monkeypatch.setattr(index_validation, "_open_and_validate", counted)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return prefixes


def test_an_index_is_validated_once(tmp_path: Path, validations: list[Path]) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    opened = [open_validated_dataset(prefix) for _ in range(3)]
    assert len(validations) == 1
    assert {dataset.token_count for dataset in opened} == {8}


def test_a_run_validates_its_shards_once(tmp_path: Path, validations: list[Path]) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    for _ in range(3):
        Shards(None).open(prefix)
    assert validations == [prefix]


@pytest.mark.parametrize("suffix", [".bin", ".idx"])
def test_a_file_with_another_modification_time_is_validated_again(
    tmp_path: Path, validations: list[Path], suffix: str
) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    open_validated_dataset(prefix)
    os.utime(prefix.with_suffix(suffix), ns=(1, 1))
    open_validated_dataset(prefix)
    assert len(validations) == 2


def test_a_dataset_with_another_hash_in_its_sidecar_is_validated_again(tmp_path: Path, validations: list[Path]) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    open_validated_dataset(prefix)
    sidecar = prefix.with_suffix(".json")
    facts = json.loads(sidecar.read_text())
    facts["sha256"]["idx"] = "0" * 64
    sidecar.write_text(json.dumps(facts))
    with pytest.raises(IndexedDatasetError, match="does not match its sidecar"):
        open_validated_dataset(prefix)
    assert len(validations) == 2


def test_a_valid_index_with_another_hash_than_its_sidecar_is_refused(tmp_path: Path) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    boundaries = np.memmap(prefix.with_suffix(".idx"), np.int64, "r+", offset=34 + 3 * 12, shape=(5,))
    assert boundaries.tolist() == [0, 1, 1, 2, 3]
    boundaries[2] = 2  # another document is the empty one
    boundaries.flush()
    assert IndexedDataset(prefix).document_count == 4
    with pytest.raises(IndexedDatasetError, match="does not match its sidecar") as refusal:
        open_validated_dataset(prefix)
    assert refusal.value.where == prefix.with_suffix(".idx")
    prefix.with_suffix(".json").unlink()
    assert open_validated_dataset(prefix).document_count == 4


def test_datasets_of_megatron_are_recorded_without_a_sidecar(tmp_path: Path, validations: list[Path]) -> None:
    prefix = write_theirs(tmp_path / "corpus", DOCUMENTS)
    assert [open_validated_dataset(prefix).token_count for _ in range(2)] == [8, 8]
    assert len(validations) == 1


def test_a_file_of_another_size_is_refused_in_spite_of_the_record(tmp_path: Path) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    open_validated_dataset(prefix)
    with prefix.with_suffix(".idx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(IndexedDatasetError):
        open_validated_dataset(prefix)


def test_an_invalid_index_is_never_recorded(tmp_path: Path, validations: list[Path]) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    lengths = np.memmap(prefix.with_suffix(".idx"), np.int32, "r+", offset=34, shape=(3,))
    lengths[0] = -1
    lengths.flush()
    for _ in range(2):
        with pytest.raises(IndexedDatasetError):
            open_validated_dataset(prefix)
    assert len(validations) == 2
    assert not list(tmp_path.rglob("*.validated"))


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_record_is_ignored(tmp_path: Path, validations: list[Path], content: bytes) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    Path(f"{prefix}.validated").write_bytes(content)
    open_validated_dataset(prefix)
    assert len(validations) == 1


def test_without_a_writable_folder_the_record_is_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validations: list[Path]
) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    refuse_writing_into(tmp_path, monkeypatch)
    for _ in range(2):
        open_validated_dataset(prefix)
    assert len(validations) == 1
    assert [record.parent for record in tmp_path.rglob("*.validated")] == [tmp_path / "cache" / "dsmath"]


def test_without_any_writable_folder_every_process_validates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, validations: list[Path]
) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    (tmp_path / "cache").write_bytes(b"a file, not a folder")
    refuse_writing_into(tmp_path, monkeypatch)
    for _ in range(2):
        assert open_validated_dataset(prefix).token_count == 8
    assert len(validations) == 2


def refuse_writing_into(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse as the system does for users other than root."""
    write_bytes = Path.write_bytes

    def write(path: Path, content: bytes) -> int:
        if path.parent == folder:
            raise PermissionError(13, "Permission denied", str(path))
        return write_bytes(path, content)

    monkeypatch.setattr(Path, "write_bytes", write)


def test_one_of_several_ranks_validates(tmp_path: Path) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    code = f"""
import sys, time
from pathlib import Path
from megatron_dsmath.data.indexed import index_validation
validate = index_validation._open_and_validate
def slowly(prefix):
    print("validations", flush=True)
    time.sleep(0.5)
    return validate(prefix)
index_validation._open_and_validate, index_validation.MIN_RECORDED_BYTES = slowly, 0
sys.stdin.read()
print(index_validation.open_validated_dataset(Path({str(prefix)!r})).token_count)
"""
    ranks = [
        subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.close()
        rank.stdin = None
    output = [line for rank in ranks for line in rank.communicate()[0].splitlines()]
    assert sorted(output) == ["8", "8", "8", "validations"]


def test_a_small_index_is_not_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    monkeypatch.setattr(index_validation, "MIN_RECORDED_BYTES", prefix.with_suffix(".idx").stat().st_size + 1)
    open_validated_dataset(prefix)
    assert {path.suffix for path in tmp_path.iterdir()} == {".bin", ".idx", ".json"}


MANY = """
import resource, sys
from pathlib import Path
from megatron_dsmath.data.indexed.dataset import IndexedDataset
from megatron_dsmath.errors import DsmathError
resource.setrlimit(resource.RLIMIT_NOFILE, (64, int(sys.argv[2])))
try:
    print(len([IndexedDataset(Path(sys.argv[1])) for _ in range(200)]))
except DsmathError as error:
    print(error.what, error.found, error.fix, sep="|")
"""


@pytest.mark.parametrize(
    ("limit", "output"),
    [
        (500, "200"),  # two files each
        (
            100,
            "the file cannot be opened|Too many open files"
            "|raise the limit of open files, or merge shards: dsmath data merge",
        ),
    ],
)
def test_many_shards_raise_the_limit_of_open_files_or_are_refused(tmp_path: Path, limit: int, output: str) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    run = subprocess.run([sys.executable, "-c", MANY, str(prefix), str(limit)], capture_output=True, text=True)
    assert run.stdout == output + "\n", run.stderr
