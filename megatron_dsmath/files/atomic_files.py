"""Files that a reader sees complete or not at all: written under a temporary name, then renamed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

from megatron_dsmath.errors import OutputError
from megatron_dsmath.fault_injection import fault_point

PARTIAL_ENDING = ".partial"


def replace_text(path: Path, text: str, *, durable: bool = False) -> None:
    """Write a text file; a reader sees the previous content or all of `text`.

    `durable`: the text is on the disk when the function returns. Without it the write is cheap, and the file may be
    lost when the machine (not the process) fails. Raises OutputError.
    """
    content = text.encode("utf-8", "backslashreplace")
    if durable:
        with AtomicFiles(path) as (file,):
            file.write(content)
        return
    scratch = path.with_name(f"{path.name}.{os.getpid()}{PARTIAL_ENDING}")
    try:
        scratch.write_bytes(content)
        fault_point("file.before_rename")
        scratch.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise write_error(path, error) from error


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Append one JSON line in a single write, so that a reader sees at most the last line incomplete.

    Raises OutputError.
    """
    try:
        fault_point("row.before_append")
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    except OSError as error:
        raise write_error(path, error) from error


def file_sha256(path: Path) -> str:
    """The sha256 of a file, in hexadecimal. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


class PartialFile(NamedTuple):
    """The beginning of an unfinished file that a killed process left, and its hash so far."""

    size_bytes: int
    sha256: hashlib._Hash


class OutputFile:
    """One file while it is written; its bytes are counted and hashed."""

    def __init__(self, path: Path, resume_from: PartialFile | None = None) -> None:
        """Open `path`.partial, empty or with the beginning that `resume_from` describes.

        Raises OutputError when the system refuses, or when another process is writing the file.
        """
        self.path = path
        self.partial = self.partial_path(path)
        self.size_bytes, self._sha256 = resume_from or PartialFile(0, hashlib.sha256())
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = _open_exclusively(self.partial, self.size_bytes)
        except OSError as error:
            raise write_error(path, error) from error

    @staticmethod
    def partial_path(path: Path) -> Path:
        """The name of the file until it is complete."""
        return Path(f"{path}{PARTIAL_ENDING}")

    @property
    def sha256(self) -> str:
        """The hexadecimal hash of everything written so far."""
        return self._sha256.hexdigest()

    def write(self, data: bytes) -> None:
        """Append `data`. Raises OutputError when the disk is full."""
        try:
            self._file.write(data)
        except OSError as error:
            raise write_error(self.path, error, self.size_bytes + len(data)) from error
        self._sha256.update(data)
        self.size_bytes += len(data)

    def sync(self) -> None:
        """Write every byte to the disk. Raises OutputError when the disk is full."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise write_error(self.path, error, self.size_bytes) from error

    def close(self) -> None:
        """Close the file and release its lock."""
        with contextlib.suppress(OSError):  # a file that is given up may fail to write its buffer
            self._file.close()


class AtomicFiles:
    """A set of files that appear together: `publish` names all of them, `discard` removes all of them.

    As a context manager it yields its `files`, publishes them at the end of the block and discards them after an error.

    The last path proves that the set is complete. It is removed first and renamed last: after a kill between two
    renames a reader refuses the set, and never takes one old and one new file for a pair.
    """

    def __init__(self, *paths: Path, resume_from: Mapping[Path, PartialFile] | None = None) -> None:
        """Open each path under its temporary name, empty or as `resume_from` describes. Raises OutputError."""
        self.files: list[OutputFile] = []
        try:
            for path in paths:
                self.files.append(OutputFile(path, (resume_from or {}).get(path)))
        except OutputError:
            self.discard()
            raise

    def publish(self) -> None:
        """Write every byte to the disk, then give every file its name. Raises OutputError."""
        for file in self.files:
            file.sync()
        proof = self.files[-1]
        try:
            if len(self.files) > 1:
                proof.path.unlink(missing_ok=True)
            for file in self.files:
                file.partial.replace(file.path)
            sync(proof.path.parent)
        except OSError as error:
            raise write_error(proof.path, error) from error
        for file in self.files:
            file.close()
        self.files = []

    def discard(self) -> None:
        """Remove the files that are not published; does nothing after `publish`."""
        for file in self.files:
            file.partial.unlink(missing_ok=True)  # before `close`: while the lock is held, the name is still ours
            file.close()
        self.files = []

    def __enter__(self) -> list[OutputFile]:
        return self.files

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.publish()
        finally:
            self.discard()


def write_error(path: Path, error: OSError, needed_bytes: int | None = None) -> OutputError:
    """The error for a file that the system does not let us write, with the bytes that are needed and free."""
    if isinstance(error, BlockingIOError):
        return OutputError(
            "another process is writing this output",
            where=path,
            fix="wait until it ends, or choose another output",
        )
    return OutputError(
        "the output cannot be written",
        where=path.parent,
        found=f"{error.strerror or error}; {_free_space(path.parent)}",
        expected=f"at least {needed_bytes:,} bytes for {path.name}" if needed_bytes else "a writable directory",
        fix="free space there, correct its permissions, or choose another output",
    )


def require_free_space(folder: Path, needed_bytes: int) -> None:
    """Raise OutputError when the existing directory `folder` has less than `needed_bytes` free."""
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise OutputError(
            "the output does not fit",
            where=folder,
            found=f"{free_bytes:,} bytes free",
            expected=f"{needed_bytes:,} bytes free",
            fix="free space there, or choose another output",
        )


def sync(path: Path) -> None:
    """Write a file's bytes, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write a text file to the disk, in a directory that no reader sees yet (`directories`). Raises OSError."""
    path.write_text(text, encoding="utf-8")
    sync(path)


def _open_exclusively(path: Path, kept_bytes: int) -> BinaryIO:
    """Open `path`, locked and truncated to `kept_bytes`; the system releases the lock of a killed process."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            _lock(descriptor)
            # The previous owner of the lock may have renamed this file to its final name: then it is not ours.
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
    except OSError:  # some cluster file systems have no locks: there the user must keep writers apart
        pass


def _free_space(folder: Path) -> str:
    for ancestor in (folder, *folder.parents):  # the folder itself may be missing or unreadable
        with contextlib.suppress(OSError):
            return f"{shutil.disk_usage(ancestor).free:,} bytes free"
    return "free space unknown"
