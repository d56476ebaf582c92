"""The one directory a program may write: how full it is, and how to be rid of it whatever was made in it."""

from __future__ import annotations

import os
import stat
from itertools import count
from pathlib import Path

from megatron_dsmath.evaluation.sandbox.outcome import Limits


def is_too_full(folder: Path, limits: Limits) -> bool:
    """Whether there is more in it than `limits` allow; looks at no more than that."""
    entries, held_bytes, waiting = 0, 0, [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    entries += 1
                    held_bytes += entry.stat(follow_symlinks=False).st_size
                    if entries > limits.files or held_bytes > limits.disk_bytes:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
        except OSError:  # it changes while we look, or may not be looked into: its files still count in the next look
            continue
    return False


def empty(folder: Path) -> None:
    """Delete all that is in it. Directories are lifted to the top before they go: none is too deep for a path."""
    numbers = count()
    while entries := list(folder.iterdir()):
        for path in entries:
            if not _is_directory(path):
                path.unlink()
                continue
            path.chmod(0o700)
            for inner in path.iterdir():
                if _is_directory(inner):
                    inner.chmod(0o700)  # moving a directory writes into it
                inner.rename(folder / f".lifted-{next(numbers)}-{os.getpid()}")
            path.rmdir()


def _is_directory(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)
