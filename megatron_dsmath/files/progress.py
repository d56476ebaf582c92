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

    @property
    def counts(self) -> str:
        """What is shown beside the bytes."""
        return f"{self.documents:,} documents, {self.tokens:,} tokens"


class TensorProgress(NamedTuple):
    """The tensors and bytes of stored weights that have been read so far."""

    tensors: int
    read_bytes: int
    total_bytes: int

    @property
    def counts(self) -> str:
        """What is shown beside the bytes."""
        return f"{self.tensors:,} tensors"


Report = Callable[[Progress | TensorProgress], None]


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

        def show(progress: Progress | TensorProgress) -> None:
            bar.update(task, total=progress.total_bytes, completed=progress.read_bytes, counts=progress.counts)

        yield show


def _plain_lines() -> Report:
    started = last_shown = time.monotonic()

    def show(progress: Progress | TensorProgress) -> None:
        nonlocal started, last_shown
        now = time.monotonic()
        if progress.read_bytes == 0:  # the pass begins only now
            started = last_shown = now
        if now - last_shown < SECONDS_BETWEEN_LINES:
            return
        last_shown = now
        bytes_per_second = progress.read_bytes / (now - started)
        remaining_seconds = (progress.total_bytes - progress.read_bytes) / bytes_per_second if bytes_per_second else 0
        print(
            f"{progress.read_bytes / progress.total_bytes:6.1%}  {progress.counts}"
            f"  {bytes_per_second / 1e6:.2f} MB/s  about {remaining_seconds:,.0f} s left",
            file=sys.stderr,
            flush=True,
        )

    return show
