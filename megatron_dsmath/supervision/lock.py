"""One job at a time writes a directory: a run's, or an evaluation's.

On one machine the system's lock decides: it goes with its process, however that ends. Between machines, whose systems
may not share locks, a lease does: the owner touches the file, and one that does not is dead. Clocks are not compared.
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
from typing import Any, NamedTuple

from megatron_dsmath.errors import RunError
from megatron_dsmath.files.atomic_files import write_error
from megatron_dsmath.files.processes import process_start
from megatron_dsmath.training.run_directory import RunDirectory

TOUCH_SECONDS = 5.0
LEASE_SECONDS = 20.0
LONG_DEAD_SECONDS = 3600.0  # no clocks differ by that much: nothing to wait for

Owner = dict[str, Any]


class Kind(NamedTuple):
    """What is written into a directory, and how it is told to go elsewhere."""

    name: str
    elsewhere: str


RUN = Kind("run", "set output to another directory")
EVALUATION = Kind("evaluation", "name another --out")


def require_free(directory: RunDirectory) -> None:
    """Raise RunError, naming the owner, where a living job holds the directory; writes nothing."""
    try:
        descriptor = os.open(directory.lock, os.O_RDWR)
    except OSError:  # no such file, or one that is not ours to write: then taking it says so
        return
    try:
        _require_dead(directory.lock, descriptor, RUN)
    finally:
        os.close(descriptor)


@contextmanager
def hold_run(directory: RunDirectory) -> Iterator[None]:
    """Hold the directory. Raises RunError where a living job has it, OutputError where it cannot be written."""
    require_free(directory)
    directory.create()
    with _hold(directory.lock, RUN):
        yield


@contextmanager
def hold_evaluation(folder: Path) -> Iterator[None]:
    """Hold the directory of an evaluation, and make it where it is not there; raises what `hold_run` does."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(folder, error) from error
    with _hold(folder / "LOCK", EVALUATION):
        yield


@contextmanager
def _hold(file: Path, kind: Kind) -> Iterator[None]:
    try:
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise write_error(file, error) from error
    try:
        _require_dead(file, descriptor, kind)
        _write(descriptor, json.dumps(_ourselves()) + "\n")
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


def _require_dead(file: Path, descriptor: int, kind: Kind) -> None:
    is_ours = _lock(descriptor)
    owner = _read(file)
    if is_ours is False or (owner is not None and _lives(file, owner, is_locked=bool(is_ours))):
        raise _directory_is_held(file, owner or {}, kind)


def _lock(descriptor: int) -> bool | None:
    """Whether the system's lock is ours now; None where the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _lives(file: Path, owner: Owner, *, is_locked: bool) -> bool:
    """Whether an owner that did not say goodbye is still there, though the system's lock did not tell."""
    if owner.get("host") == socket.gethostname():
        return not is_locked and owner.get("process_start") == process_start(int(owner.get("pid", 0)))
    touched = file.stat().st_mtime_ns
    if abs(time.time() - touched / 1e9) > LONG_DEAD_SECONDS:
        return False
    deadline = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(1.0, LEASE_SECONDS / 10))
        if file.stat().st_mtime_ns != touched:
            return True
    return False


def _ourselves() -> Owner:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process_start": process_start(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _directory_is_held(file: Path, owner: Owner, kind: Kind) -> RunError:
    job = f", SLURM job {owner['job']}" if owner.get("job") else ""
    return RunError(
        f"another job has the {kind.name}'s directory",
        where=file.parent,
        found=f"process {owner.get('pid', '?')} on {owner.get('host', 'an unknown host')}{job}, since "
        f"{owner.get('since', 'an unknown time')}",
        expected="one job at a time",
        fix=f"wait for it or stop it, or {kind.elsewhere}",
    )


def _read(file: Path) -> Owner | None:
    """Who wrote the file; None for one that said goodbye."""
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
