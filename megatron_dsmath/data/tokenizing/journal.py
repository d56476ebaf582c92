"""The progress of a tokenize run, so that the same command continues where a killed run ended.

PREFIX.journal records how many batches are done and how much of each unfinished file they fill;
PREFIX.journal.lengths contains the length of each document so far. Both are removed when a run ends, with or without
an error; they remain only after a run that was killed.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.files.atomic_files import OutputFile, PartialFile, replace_text, write_error

SECONDS_BETWEEN_ENTRIES = 5.0


class JournalEntry(NamedTuple):
    """The number of `batches` done, their `bad_lines`, their document `lengths`, and the unfinished files by path."""

    batches: int
    bad_lines: int
    lengths: npt.NDArray[np.int64]
    partial_files: Mapping[Path, PartialFile]


EMPTY_ENTRY = JournalEntry(0, 0, np.empty(0, np.int64), {})


class Journal:
    """The journal of one task. `task` describes everything that determines the output of a run."""

    def __init__(self, prefix: Path, task: str) -> None:
        self._path = Path(f"{prefix}.journal")
        self._lengths_path = Path(f"{prefix}.journal.lengths")
        self._task = hashlib.sha256(task.encode()).hexdigest()
        self._lengths: list[npt.NDArray[np.int64]] = []
        self._documents = 0
        self._last_entry = time.monotonic()

    def read(self) -> JournalEntry:
        """The last entry of a killed run of the same task; `EMPTY_ENTRY` if there is none or a file is damaged."""
        try:
            content = json.loads(self._path.read_bytes())
            if content["task"] != self._task:
                return EMPTY_ENTRY
            lengths = np.fromfile(self._lengths_path, np.int64, content["documents"])
            found = {Path(name): _partial_file(Path(name), *entry) for name, entry in content["files"].items()}
        except (OSError, ValueError, LookupError, TypeError):
            return EMPTY_ENTRY
        files = {path: file for path, file in found.items() if file is not None}
        if len(lengths) < content["documents"] or len(files) < len(found):
            return EMPTY_ENTRY
        self._documents = len(lengths)
        return JournalEntry(content["batches"], content["bad_lines"], lengths, files)

    def add(self, batches: int, bad_lines: int, lengths: npt.NDArray[np.int64], files: Sequence[OutputFile]) -> None:
        """Record that `batches` are done; `lengths` are those of the last batch.

        An entry is written every few seconds, after all bytes that it describes are synced to the disk. Raises
        OutputError if the disk is full.
        """
        self._lengths.append(lengths)
        if time.monotonic() - self._last_entry < SECONDS_BETWEEN_ENTRIES:
            return
        for file in files:
            file.sync()
        try:
            self._write(batches, bad_lines, files)
        except OSError as error:
            raise write_error(self._path, error) from error
        self._last_entry = time.monotonic()

    def remove(self) -> None:
        """Remove the journal's files."""
        for path in (self._path, self._lengths_path):
            with suppress(OSError):
                path.unlink()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Remove the journal after an error; a successful task calls `remove` when its files are published."""
        if error is not None:
            self.remove()

    def _write(self, batches: int, bad_lines: int, files: Sequence[OutputFile]) -> None:
        with self._lengths_path.open("r+b" if self._documents else "wb") as file:
            file.seek(self._documents * np.dtype(np.int64).itemsize)  # overwrites what follows a killed run's entry
            for lengths in self._lengths:
                file.write(lengths.tobytes())
                self._documents += len(lengths)
        self._lengths = []
        content = {
            "task": self._task,
            "batches": batches,
            "bad_lines": bad_lines,
            "documents": self._documents,
            "files": {str(file.path): (file.size_bytes, file.sha256) for file in files},
        }
        replace_text(self._path, json.dumps(content))


def _partial_file(path: Path, size_bytes: int, sha256: str) -> PartialFile | None:
    """The beginning of an unfinished file, or None if its hash is not the recorded one."""
    content = hashlib.sha256()
    with OutputFile.partial_path(path).open("rb") as file:
        remaining = size_bytes
        while remaining and (part := file.read(min(remaining, 1 << 20))):
            content.update(part)
            remaining -= len(part)
    return PartialFile(size_bytes, content) if not remaining and content.hexdigest() == sha256 else None
