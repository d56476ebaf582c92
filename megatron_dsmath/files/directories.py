"""Directories that a reader sees complete or not at all: filled under a temporary name, then renamed."""

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
    """Yield a directory to fill; at the end of the block it becomes `target`, after an error it is removed.

    Raises OutputError when `target` is not empty or the system refuses.
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
    """Create an empty directory beside `target`, with a temporary name, and return it.

    Leftovers of dead processes for the same target are removed. Raises OutputError.
    """
    target = target.absolute()
    require_absent(target)
    incomplete = _temporary_name(target)
    with report_write_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent, target.name)
        incomplete.mkdir()
    return incomplete


def publish(incomplete: Path) -> Path:
    """Rename a filled directory to its final name and return that; its files must be on the disk already.

    Raises OutputError when the final name exists.
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
    """Remove an unpublished directory; the next `begin` tries again where the system refuses."""
    shutil.rmtree(incomplete, ignore_errors=True)


def delete(published: Path) -> None:
    """Delete a published directory; it is renamed first, so that no reader sees a part of it."""
    incomplete = _temporary_name(published)
    published.rename(incomplete)
    fault_point("checkpoint.pruning")
    discard(incomplete)


def remove_leftovers(parent: Path, target: str) -> None:
    """Remove the unpublished directories of dead processes of this host; `target` is a glob pattern in `parent`.

    Directories of other hosts stay, because their processes may be alive.
    """
    for leftover in parent.glob(f"{target}.incomplete-*"):
        name = _INCOMPLETE.fullmatch(leftover.name)
        if name is not None and name["host"] == _host() and not is_alive(int(name["process"])):
            discard(leftover)


def require_absent(target: Path) -> None:
    """Raise OutputError if `target` exists and is not an empty directory."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        return
    raise OutputError(
        "the output exists already",
        where=target,
        found="a file" if target.is_file() else "a directory that is not empty",
        expected="no such file or directory, or an empty directory",
        fix="choose another output, or move this one",
    )


def require_writable(target: Path, needed_bytes: int | None = None) -> Path:
    """The nearest existing directory above `target`.

    Raises OutputError, which names `needed_bytes` if given, when nothing can be created there.
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
    """Raise an OSError of the block as OutputError, with the bytes that are needed and free."""
    try:
        yield
    except OSError as error:
        raise write_error(path, error, needed_bytes) from error


def _temporary_name(target: Path) -> Path:
    return target.with_name(f"{target.name}.incomplete-{_host()}-{os.getpid()}-{secrets.token_hex(4)}")


def _host() -> str:
    return re.sub(r"[^\w.-]", "_", socket.gethostname())
