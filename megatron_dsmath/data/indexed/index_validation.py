"""Validates an index once, in the first process that opens it for a run, instead of in every rank at every start.

PREFIX.validated records the size and modification time of both files and the hash of the index. A file that differs in
any of these is validated again. The record is not part of the dataset. If the folder of the data is not writable, the
record is written to the user's cache; if that is not writable either, every process validates the index itself.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from megatron_dsmath.data.indexed.dataset import IndexedDataset, bin_path, idx_path
from megatron_dsmath.data.indexed.sidecar import idx_sha256, read_sidecar
from megatron_dsmath.errors import IndexedDatasetError, OutputError
from megatron_dsmath.files.atomic_files import file_sha256, replace_text

MIN_RECORDED_BYTES = 1 << 18  # validating a smaller index takes no longer than reading a record

FileStates = dict[str, list[int | str | None]]


def open_validated_dataset(prefix: Path) -> IndexedDataset:
    """Open the dataset at `prefix`; validate its index, also against the hash in its sidecar, unless that is recorded.

    If several processes open it at the same time, one validates it and the others wait. Raises IndexedDatasetError.
    """
    if not idx_path(prefix).is_file() or idx_path(prefix).stat().st_size < MIN_RECORDED_BYTES:
        return _open_and_validate(prefix)
    if _is_recorded(prefix):
        return IndexedDataset(prefix, validate=False)
    with _lock(idx_path(prefix)):
        if _is_recorded(prefix):  # by the process that held the lock
            return IndexedDataset(prefix, validate=False)
        states = _file_states(prefix)  # before the validation: a file that changes during it is validated again
        dataset = _open_and_validate(prefix)
        _write_record(prefix, states)
        return dataset


def _open_and_validate(prefix: Path) -> IndexedDataset:
    dataset = IndexedDataset(prefix)
    expected, found = idx_sha256(read_sidecar(prefix)), file_sha256(idx_path(prefix))
    if expected not in (None, found):
        raise IndexedDatasetError(
            "the index does not match its sidecar",
            where=idx_path(prefix),
            found=f"sha256 {found}",
            expected=f"sha256 {expected}",
            fix="the file was changed after it was written: copy it again from its source, or tokenize again",
        )
    return dataset


def _file_states(prefix: Path) -> FileStates:
    """Size and modification time of both files, and the sidecar's hash of the index, which validation compares."""
    statuses = {path.suffix: path.stat() for path in (bin_path(prefix), idx_path(prefix))}
    states: FileStates = {suffix: [status.st_size, status.st_mtime_ns] for suffix, status in statuses.items()}
    return states | {"sha256 of .idx": [idx_sha256(read_sidecar(prefix))]}


def _is_recorded(prefix: Path) -> bool:
    for record in _record_paths(prefix):
        with suppress(OSError, ValueError, RecursionError):  # a missing or damaged record
            if json.loads(record.read_bytes()) == _file_states(prefix):
                return True
    return False


def _write_record(prefix: Path, states: FileStates) -> None:
    """Write the record to the first path that is writable, if any."""
    for record in _record_paths(prefix):
        with suppress(OSError, OutputError):
            record.parent.mkdir(parents=True, exist_ok=True)
            replace_text(record, json.dumps(states) + "\n")
            return


def _record_paths(prefix: Path) -> tuple[Path, Path]:
    """The path in the folder of the data, and the path in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111, Path.home may raise
    name = hashlib.sha256(str(prefix.resolve()).encode()).hexdigest()
    return Path(f"{prefix}.validated"), Path(cache) / "dsmath" / f"{name}.validated"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on `path`, which ends with the process; without support of locks, do not wait."""
    with path.open("rb") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
