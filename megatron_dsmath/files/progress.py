"""The progress of a long pass over files: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

SECONDS_BETWEEN_LINES = 10.0


class Progress(NamedTuple):
    """The work done so far. Bytes are those of the files on the disk, which may be compressed."""

    documents: int
    tokens: int
    read_bytes: int
    total_bytes: int


Report = Callable[[Progress], None]


@contextmanager
def show_progress() -> Iterator[Report]:
    """Yield a function that shows progress on standard error."""
    if not sys.stderr.isatty():
        yield _plain_lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TextColumn("{task.fields[counts]}"))
    with Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task("", total=None, counts="")

        def show(progress: Progress) -> None:
            bar.update(task, total=progress.total_bytes, completed=progress.read_bytes, counts=_counts(progress))

        yield show


def _plain_lines() -> Report:
    started = last_shown = time.monotonic()

    def show(progress: Progress) -> None:
        nonlocal last_shown
        now = time.monotonic()
        if now - last_shown < SECONDS_BETWEEN_LINES:
            return
        last_shown = now
        bytes_per_second = progress.read_bytes / (now - started)
        remaining_seconds = (progress.total_bytes - progress.read_bytes) / bytes_per_second if bytes_per_second else 0
        print(
            f"{progress.read_bytes / progress.total_bytes:6.1%}  {_counts(progress)}"
            f"  {bytes_per_second / 1e6:.2f} MB/s  about {remaining_seconds:,.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    return show


def _counts(progress: Progress) -> str:
    return f"{progress.documents:,} documents, {progress.tokens:,} tokens"
