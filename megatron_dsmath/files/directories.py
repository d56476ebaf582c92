"""Directories that appear whole or not at all: filled beside their final names, synced, renamed."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_dsmath.errors import OutputError
from megatron_dsmath.fault_injection import fault_point
from megatron_dsmath.files.atomic_files import sync, write_error
from megatron_dsmath.files.processes import is_alive

_INCOMPLETE = re.compile(r"(?P<target>.+)\.incomplete-(?P<host>.+)-(?P<process>\d+)-[0-9a-f]{8}")


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a directory to fill, which becomes `target` at the end; after an error nothing of it stays.

    Raises OutputError when `target` holds something already or the system refuses.
    """
    incomplete = begin(target)
    try:
        with report_write_errors(target):
            yield incomplete
        publish(incomplete)
    except BaseException:
        discard(incomplete)
        raise


def begin(target: Path) -> Path:
    """Create an empty directory beside `target`, named for it and for this process.

    What a process that died left of the same target is removed. Raises OutputError.
    """
    target = target.absolute()
    require_absent(target)
    incomplete = target.with_name(f"{target.name}.incomplete-{_host()}-{os.getpid()}-{secrets.token_hex(4)}")
    with report_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent, target.name)
        incomplete.mkdir()
    return incomplete


def publish(incomplete: Path) -> Path:
    """Give a filled directory its final name, which it returns. The files in it are on the disk already.

    Raises OutputError when the name was taken meanwhile.
    """
    name = _INCOMPLETE.fullmatch(incomplete.name)
    assert name is not None, incomplete
    target = incomplete.with_name(name["target"])
    require_absent(target)
    with report_write_errors(target):
        for folder in [incomplete, *(entry for entry in incomplete.rglob("*") if entry.is_dir())]:
            sync(folder)
        incomplete.rename(target)
        sync(target.parent)
    return target


def discard(incomplete: Path) -> None:
    """Remove what was begun and will not be published; what cannot be removed is left to the next `begin`."""
    shutil.rmtree(incomplete, ignore_errors=True)


def delete(published: Path) -> None:
    """Delete a published directory: it loses its name first, so that no reader ever meets half of it."""
    incomplete = published.with_name(f"{published.name}.incomplete-{_host()}-{os.getpid()}-{secrets.token_hex(4)}")
    published.rename(incomplete)
    fault_point("checkpoint.pruning")
    discard(incomplete)


def remove_leftovers(parent: Path, target: str) -> None:
    """Remove the incomplete directories that dead processes of this host left of `target` (a glob) in `parent`.

    Another host's are left alone: from here it cannot be seen whether their process lives.
    """
    for leftover in parent.glob(f"{target}.incomplete-*"):
        name = _INCOMPLETE.fullmatch(leftover.name)
        if name is not None and name["host"] == _host() and not is_alive(int(name["process"])):
            discard(leftover)


def require_absent(target: Path) -> None:
    """Raise OutputError unless `target` is free, or an empty directory."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    raise OutputError(
        "the output exists already",
        where=target,
        found="a file" if target.is_file() else "a directory that is not empty",
        expected="nothing, or an empty directory",
        fix="choose another output, or move this one away",
    )


def require_writable(target: Path, needed_bytes: int | None = None) -> Path:
    """The directory in which `target` is, or will be made with those between.

    Raises OutputError, which names the bytes where they are given, unless something can be made there.
    """
    folder = target.absolute()
    while not folder.is_dir():
        folder = folder.parent
    probe = folder / f".probe-{os.getpid()}-{secrets.token_hex(4)}"
    with report_write_errors(probe, needed_bytes):
        probe.mkdir()
        probe.rmdir()
    return folder


@contextmanager
def report_write_errors(path: Path, needed_bytes: int | None = None) -> Iterator[None]:
    """Turn the system's refusal to write `path` into an OutputError that says what is needed and free."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error, needed_bytes) from error


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname())
