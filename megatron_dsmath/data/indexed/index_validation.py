"""An index is checked once, by the first process that opens it for a run, and not by every rank at every start.

PREFIX.validated then keeps the size and time of change of both files and the hash of the index: a file that differs in
any of these is checked again. It is no part of the dataset. Where the data's folder cannot be written, the note lies in
the user's cache; where that cannot be either, each process checks for itself.
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
from megatron_dsmath.data.indexed.sidecar import idx_sha256, read_sidecar, sha256_of
from megatron_dsmath.errors import IndexedDatasetError, OutputError
from megatron_dsmath.files.atomic_files import replace_text

MIN_RECORDED_BYTES = 1 << 18  # a smaller index is checked in the time that a note takes to read

Marks = dict[str, list[int | str | None]]


def open_validated_dataset(prefix: Path) -> IndexedDataset:
    """The dataset at `prefix`, its index checked now or noted to be sound, also against the hash in its sidecar.

    Of several processes that open it at once, one checks and the others wait for its note. Raises IndexedDatasetError.
    """
    if not idx_path(prefix).is_file() or idx_path(prefix).stat().st_size < MIN_RECORDED_BYTES:
        return _open_and_validate(prefix)
    if _is_recorded(prefix):
        return IndexedDataset(prefix, validate=False)
    with _lock(idx_path(prefix)):
        if _is_recorded(prefix):  # by the process that we waited for
            return IndexedDataset(prefix, validate=False)
        marks = _file_states(prefix)  # before the check, so that a file that changes meanwhile is checked again
        dataset = _open_and_validate(prefix)
        _write_record(prefix, marks)
        return dataset


def _open_and_validate(prefix: Path) -> IndexedDataset:
    """Every byte of the index is looked at."""
    dataset = IndexedDataset(prefix)
    expected, found = idx_sha256(read_sidecar(prefix)), sha256_of(idx_path(prefix))
    if expected not in (None, found):
        raise IndexedDatasetError(
            "the index is not the one that its sidecar tells of",
            where=idx_path(prefix),
            found=f"sha256 {found}",
            expected=f"sha256 {expected}",
            fix="the file was changed after it was written: copy it again from its source, or tokenize again",
        )
    return dataset


def _file_states(prefix: Path) -> Marks:
    """By which the files are known again; the hash is the sidecar's, with which a check compares the index."""
    statuses = {path.suffix: path.stat() for path in (bin_path(prefix), idx_path(prefix))}
    marks: Marks = {suffix: [status.st_size, status.st_mtime_ns] for suffix, status in statuses.items()}
    return marks | {"sha256 of .idx": [idx_sha256(read_sidecar(prefix))]}


def _is_recorded(prefix: Path) -> bool:
    with suppress(OSError):
        marks = _file_states(prefix)
        return any(_content(note) == marks for note in _record_paths(prefix))
    return False


def _content(note: Path) -> object:
    try:
        return json.loads(note.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def _write_record(prefix: Path, marks: Marks) -> None:
    """In the first place that the system lets us write."""
    for note in _record_paths(prefix):
        with suppress(OSError, OutputError):
            note.parent.mkdir(parents=True, exist_ok=True)
            replace_text(note, json.dumps(marks) + "\n")
            return


def _record_paths(prefix: Path) -> tuple[Path, Path]:
    """Beside the data, and in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111, Path.home may raise
    name = hashlib.sha256(str(prefix.resolve()).encode()).hexdigest()
    return Path(f"{prefix}.validated"), Path(cache) / "dsmath" / f"{name}.validated"


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold the only lock on `path`; it goes with its process. Where a file system has none, nobody waits."""
    with path.open("rb") as file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
