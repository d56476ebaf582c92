"""Locks the directory of a run or an evaluation, so that one job at a time writes to it.

On one machine the system's file lock decides; it ends with its process. Machines may not share file locks, so that
between them a lease decides: the owner touches the file regularly, and an owner that does not is dead. The clocks of
the machines are not compared.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from megatron_dsmath.errors import RunError
from megatron_dsmath.files.atomic_files import write_error
from megatron_dsmath.files.processes import process_start
from megatron_dsmath.training.run_directory import RunDirectory

TOUCH_SECONDS = 5.0
LEASE_SECONDS = 20.0
LONG_DEAD_SECONDS = 3600.0  # more than clocks differ: such an owner is dead without waiting for a lease

Owner = dict[str, Any]


def require_free(directory: RunDirectory) -> None:
    """Raise RunError, which names the owner, where a running job holds the directory; writes nothing."""
    try:
        descriptor = os.open(directory.lock, os.O_RDWR)
    except OSError:  # there is no lock, or `hold_run` raises the error
        return
    try:
        _require_dead(directory.lock, descriptor, "run")
    finally:
        os.close(descriptor)


@contextmanager
def hold_run(directory: RunDirectory) -> Iterator[None]:
    """Lock the directory. Raises RunError where a running job has it, OutputError where it cannot be written."""
    require_free(directory)
    directory.create()
    with _hold(directory.lock, "run"):
        yield


@contextmanager
def hold_evaluation(folder: Path) -> Iterator[None]:
    """Create the directory of an evaluation if needed, and lock it. Raises as `hold_run`."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    with _hold(folder / "LOCK", "evaluation"):
        yield


@contextmanager
def _hold(file: Path, kind: str) -> Iterator[None]:
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise write_error(file, error) from error
    try:
        _require_dead(file, descriptor, kind)
        owner = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_start": process_start(os.getpid()),
            "job": os.environ.get("SLURM_JOB_ID"),
            "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        }
        _write(descriptor, json.dumps(owner) + "\n")
        released = threading.Event()
        threading.Thread(target=_touch, args=(descriptor, released), name="lease", daemon=True).start()
        try:
            yield
        finally:
            released.set()
            with suppress(OSError):
                _write(descriptor, "")
    finally:
        os.close(descriptor)


def _require_dead(file: Path, descriptor: int, kind: str) -> None:
    """Raise RunError, which names the owner, where a running job holds the lock `file`."""
    has_lock, owner = _lock(descriptor), _read(file)
    if has_lock is not False and (owner is None or not _is_alive(file, owner, has_lock=bool(has_lock))):
        return
    owner = owner or {}
    job = f", SLURM job {owner['job']}" if owner.get("job") else ""
    raise RunError(
        f"another job has the {kind}'s directory",
        where=file.parent,
        found=f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')}{job}, since "
        f"{owner.get('since', 'an unknown time')}",
        expected="one job at a time",
        fix=f"wait for it or stop it, or set {'output' if kind == 'run' else '--out'} to another directory",
    )


def _lock(descriptor: int) -> bool | None:
    """Whether this process has the system's lock now; None where the file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _is_alive(file: Path, owner: Owner, *, has_lock: bool) -> bool:
    """Whether the owner that the file names is alive, where the system's lock does not decide."""
    if owner.get("host") == socket.gethostname():
        return not has_lock and owner.get("process_start") == process_start(int(owner.get("pid", 0)))
    touched = file.stat().st_mtime_ns
    if abs(time.time() - touched / 1e9) > LONG_DEAD_SECONDS:
        return False
    deadline = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, LEASE_SECONDS / 10))
        if file.stat().st_mtime_ns != touched:
            return True
    return False


def _read(file: Path) -> Owner | None:
    """The owner that the file names; None where the last owner released it."""
    try:
        owner = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return owner if isinstance(owner, dict) else None


def _write(descriptor: int, text: str) -> None:
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, text.encode(), 0)


def _touch(descriptor: int, released: threading.Event) -> None:
    while not released.wait(TOUCH_SECONDS):
        with suppress(OSError):
            os.utime(descriptor)
