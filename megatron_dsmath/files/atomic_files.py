"""Files that appear whole or not at all: written beside their final names, synced, renamed together."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, NamedTuple

from megatron_dsmath.errors import OutputError

PARTIAL_ENDING = ".partial"


class Kept(NamedTuple):
    """The beginning of an unfinished file that a killed process left, and its hash so far."""

    size_bytes: int
    sha256: hashlib._Hash


class OutputFile:
    """One file while it is written: counts its bytes and hashes them on the way."""

    def __init__(self, path: Path, kept: Kept | None = None) -> None:
        """Open `path`.partial, empty or with what is `kept` of it.

        Raises OutputError when it cannot, or when another process is writing it.
        """
        self.path = path
        self.partial = self.partial_of(path)
        self.size_bytes, self._sha256 = kept or Kept(0, hashlib.sha256())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_exclusively(self.partial, self.size_bytes)
        except OSError as error:
            raise cannot_write(path, error) from error

    @staticmethod
    def partial_of(path: Path) -> Path:
        """Where the file lies until it is whole."""
        return Path(f"{path}{PARTIAL_ENDING}")

    @property
    def sha256(self) -> str:
        """The hash, in hexadecimal, of everything written so far."""
        return self._sha256.hexdigest()

    def write(self, data: bytes) -> None:
        """Append `data`. Raises OutputError when the disk is full."""
        try:
            self._file.write(data)
        except OSError as error:
            raise cannot_write(self.path, error, self.size_bytes + len(data)) from error
        self._sha256.update(data)
        self.size_bytes += len(data)

    def sync(self) -> None:
        """Bring every byte to the disk. Raises OutputError when the disk is full."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise cannot_write(self.path, error, self.size_bytes) from error

    def close(self) -> None:
        """Release the file and its lock."""
        with contextlib.suppress(OSError):  # the buffer of a file that is being given up
            self._file.close()


class AtomicFiles:
    """A set of files that appears as a whole with `publish`, and of which nothing stays after `discard`.

    The last path is the proof that the set is whole: it is removed first and renamed last, so that a process killed
    between two renames leaves a set that a reader refuses, never one old and one new file that look like a pair.
    """

    def __init__(self, *paths: Path, kept: Mapping[Path, Kept] | None = None) -> None:
        """Open each path under its temporary name, with what is `kept` of it. Raises OutputError."""
        self.files: list[OutputFile] = []
        try:
            for path in paths:
                self.files.append(OutputFile(path, (kept or {}).get(path)))
        except OutputError:
            self.discard()
            raise

    def publish(self) -> None:
        """Bring every byte to the disk, then give every file its name. Raises OutputError."""
        for file in self.files:
            file.sync()
        proof = self.files[-1]
        try:
            proof.path.unlink(missing_ok=True)
            for file in self.files:
                file.partial.replace(file.path)
            _sync_folder(proof.path.parent)
        except OSError as error:
            raise cannot_write(proof.path, error) from error
        for file in self.files:
            file.close()
        self.files = []

    def discard(self) -> None:
        """Remove what was not published; after `publish` there is nothing to do."""
        for file in self.files:
            file.partial.unlink(missing_ok=True)  # while the lock is held: the name is still ours
            file.close()
        self.files = []


def cannot_write(path: Path, error: OSError, needed_bytes: int | None = None) -> OutputError:
    """The error for a file that the system does not let us write: names the folder, what it needs and what is free."""
    if isinstance(error, BlockingIOError):
        return OutputError(
            "another process is writing this output",
            where=path,
            fix="wait for it to end, or choose another output",
        )
    return OutputError(
        "the output cannot be written",
        where=path.parent,
        found=f"{error.strerror or error}; {_free_space(path.parent)}",
        expected=f"at least {needed_bytes:,} bytes for {path.name}" if needed_bytes else "a folder that can be written",
        fix="free space there, correct its permissions, or choose another output",
    )


def require_free_space(folder: Path, needed_bytes: int) -> None:
    """Refuse to start what `folder` (which exists) cannot hold. Raises OutputError."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise OutputError(
            "the output does not fit",
            where=folder,
            found=f"{free_bytes:,} bytes free",
            expected=f"{needed_bytes:,} bytes free",
            fix="free space there, or choose another output",
        )


def _open_exclusively(path: Path, kept_bytes: int) -> BinaryIO:
    """Open `path` locked, cut off behind `kept_bytes`.

    The lock goes with its process, so one that was killed blocks nobody.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(descriptor)
            # While we waited, the holder may have renamed this very file to its final name: then it is not ours.
            if path.exists() and os.path.samestat(os.fstat(descriptor), path.stat()):
                os.ftruncate(descriptor, kept_bytes)
                os.lseek(descriptor, 0, os.SEEK_END)
                return os.fdopen(descriptor, "r+b", buffering=1 << 20)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError:  # some cluster file systems are mounted without locks: there the user keeps writers apart
        pass


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _free_space(folder: Path) -> str:
    for ancestor in (folder, *folder.parents):  # the folder itself may be missing, or not ours to look at
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(ancestor).free:,} bytes free"
    return "free space unknown"
