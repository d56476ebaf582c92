"""How far a long run has come, so that one that was killed goes on where it stood.

PREFIX.journal names the batches that are done and how much of each unfinished file they fill; PREFIX.journal.lengths
holds the length of each document so far. Both go when the run ends, well or not; only a killed one leaves them.
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
    """What is done: `batches`, and within them `bad_lines` and `lengths` [documents]; `kept` by the file's path."""

    batches: int
    bad_lines: int
    lengths: npt.NDArray[np.int64]
    kept: Mapping[Path, PartialFile]


EMPTY_ENTRY = JournalEntry(0, 0, np.empty(0, np.int64), {})


class Journal:
    """The journal of one task: what a run would do from the beginning, as a text that tells it from every other."""

    def __init__(self, prefix: Path, task: str) -> None:
        self._path = Path(f"{prefix}.journal")
        self._lengths_path = Path(f"{prefix}.journal.lengths")
        self._task = hashlib.sha256(task.encode()).hexdigest()
        self._lengths: list[npt.NDArray[np.int64]] = []
        self._documents = 0
        self._last_entry = time.monotonic()

    def read(self) -> JournalEntry:
        """What a killed run of the same task has done; `EMPTY_ENTRY` where none was, or its files are not whole."""
        try:
            content = json.loads(self._path.read_bytes())
            if content["task"] != self._task:
                return EMPTY_ENTRY
            lengths = np.fromfile(self._lengths_path, np.int64, content["documents"])
            kept = {Path(name): _kept(Path(name), *place) for name, place in content["files"].items()}
        except (OSError, ValueError, LookupError, TypeError):
            return EMPTY_ENTRY
        whole = {path: place for path, place in kept.items() if place is not None}
        if len(lengths) < content["documents"] or len(whole) < len(kept):
            return EMPTY_ENTRY
        self._documents = len(lengths)
        return JournalEntry(content["batches"], content["bad_lines"], lengths, whole)

    def add(self, batches: int, bad_lines: int, lengths: npt.NDArray[np.int64], files: Sequence[OutputFile]) -> None:
        """Note that `batches` are done, the last with documents of `lengths`. Raises OutputError when the disk is full.

        An entry is written every few seconds, after every byte that it speaks of is on the disk.
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
        """Forget the task: it has ended."""
        for path in (self._path, self._lengths_path):
            with suppress(OSError):
                path.unlink()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A task that failed leaves nothing; one that did well is forgotten with `remove` once its files are there."""
        if error is not None:
            self.remove()

    def _write(self, batches: int, bad_lines: int, files: Sequence[OutputFile]) -> None:
        with self._lengths_path.open("r+b" if self._documents else "wb") as file:
            file.seek(self._documents * np.dtype(np.int64).itemsize)  # what a killed run wrote behind its last entry
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


def _kept(path: Path, size_bytes: int, sha256: str) -> PartialFile | None:
    """The beginning of an unfinished file, when it is what the journal says."""
    content = hashlib.sha256()
    with OutputFile.partial_path(path).open("rb") as file:
        remaining = size_bytes
        while remaining and (part := file.read(min(remaining, 1 << 20))):
            content.update(part)
            remaining -= len(part)
    return PartialFile(size_bytes, content) if not remaining and content.hexdigest() == sha256 else None
