"""An interpreter that waits, warm, and runs each program in a fork of itself, confined.

Started by `pool` with an empty environment, in an empty directory. A request is a line of JSON on standard input,
`{"program", "input", "limits"}`; the answer a line of JSON on standard output, `Outcome` as a dictionary. Nothing a
program writes is read as anything but text.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import gc
import importlib
import json
import os
import random
import select
import signal
import stat
import sys
import tempfile
import time
import traceback
from itertools import count
from pathlib import Path
from typing import NoReturn

from megatron_dsmath.sandbox import confinement
from megatron_dsmath.sandbox.confinement import Confinement
from megatron_dsmath.sandbox.outcome import Limits, Outcome, Verdict


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


_LOOK_SECONDS = 0.05  # how often the scratch directory is looked at
_DIE_WITH_PARENT = 1
_READ_BYTES = 1 << 16
_REPORT_BYTES = 4096
_TRACEBACK_CHARACTERS = 8192  # its end says what happened


def serve(modules: list[str], root: str) -> None:
    """Import `modules`, leave what can be left, say so, and answer requests until standard input ends."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what an import prints is no answer
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    for module in modules:
        importlib.import_module(module)
    sys.stdout.flush()  # or it would come out of every fork
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)  # a program that draws numbers draws the same ones each time
    namespaces = confinement.leave_namespaces()
    folder = Path(tempfile.mkdtemp(dir=root))
    confine = confinement.Confinement(folder)
    gc.freeze()
    gc.disable()  # a collection would touch, and so copy, every page shared with the forks
    _answer(answers, {"namespaces": namespaces})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        outcome = _run(request["program"], request["input"], Limits(**request["limits"]), folder, confine)
        empty(folder)
        _answer(answers, outcome.as_dict())


def _answer(answers: int, facts: object) -> None:
    data = json.dumps(facts).encode() + b"\n"
    while data:
        data = data[os.write(answers, data) :]


def _run(program: str, text: str, limits: Limits, folder: Path, confine: Confinement) -> Outcome:
    with tempfile.TemporaryFile() as given:
        given.write(text.encode("utf-8", "surrogatepass"))
        given.seek(0)
        pipes = {name: os.pipe() for name in ("stdout", "stderr", "report")}
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            _be_the_program(program, given.fileno(), [write for _, write in pipes.values()], limits, confine)
    for _, write in pipes.values():
        os.close(write)
    streams = _Streams({name: read for name, (read, _) in pipes.items()}, limits)
    try:
        cut = streams.read_until_closed(started + limits.timeout_seconds, folder)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        streams.close()
    verdict, error = (cut, _CUT[cut]) if cut else _judge(status, bytes(streams.texts["report"]))
    stdout, stderr = (streams.texts[name].decode("utf-8", "replace") for name in ("stdout", "stderr"))
    return Outcome(verdict, stdout, stderr, error, round(time.monotonic() - started, 4))


_CUT: dict[Verdict, str] = {
    "timeout": "the program took too long",
    "output": "the program printed too much",
    "disk": "the program wrote too much",
}


_REPORTED: tuple[Verdict, ...] = ("ok", "error", "memory", "denied", "disk")


class _Streams:
    """What the program writes, read as it comes and no further than its limit."""

    def __init__(self, descriptors: dict[str, int], limits: Limits) -> None:
        self.texts = {name: bytearray() for name in descriptors}
        self._names = {descriptor: name for name, descriptor in descriptors.items()}
        self._open = set(self._names)
        self._limits = limits

    def read_until_closed(self, deadline: float, folder: Path) -> Verdict | None:
        """Read until the program ends; the verdict where it is cut off before."""
        while self._open:
            left = deadline - time.monotonic()
            if left <= 0:
                return "timeout"
            ready, _, _ = select.select(self._open, [], [], min(left, _LOOK_SECONDS))
            for descriptor in ready:
                if not self._read(descriptor):
                    return "output"
            if not ready and is_too_full(folder, self._limits):
                return "disk"
        return "disk" if is_too_full(folder, self._limits) else None

    def _read(self, descriptor: int) -> bool:
        data = os.read(descriptor, _READ_BYTES)
        name = self._names[descriptor]
        if not data:
            self._open.remove(descriptor)
        most = _REPORT_BYTES if name == "report" else self._limits.output_bytes
        room = most - len(self.texts[name])
        self.texts[name] += data[:room]
        return len(data) <= room

    def close(self) -> None:
        for descriptor in self._names:
            os.close(descriptor)


def _judge(status: int, report: bytes) -> tuple[Verdict, str]:
    """The verdict on a program that ended: by what it reported, if it came so far, and by how the process ended."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        verdicts: dict[int, Verdict] = {signal.SIGXCPU: "timeout", signal.SIGKILL: "timeout", signal.SIGXFSZ: "disk"}
        return verdicts.get(number, "error"), f"ended by {signal.Signals(number).name}"
    kind, _, error = report.decode("utf-8", "replace").partition(" ")
    for verdict in _REPORTED:
        if kind == verdict:
            return verdict, error
    return "error", f"the program left with exit code {os.WEXITSTATUS(status)}"


def _be_the_program(program: str, given: int, writable: list[int], limits: Limits, confine: Confinement) -> NoReturn:
    """In the fork: shut everything, run the program, report how it ended, leave."""
    code = 1
    try:
        stdout, stderr, report = writable
        keep = 3
        os.dup2(given, 0)
        for target, descriptor in ((100, stdout), (101, stderr), (102, report)):
            os.dup2(descriptor, target)  # out of the way of 0 to 3
        for target, descriptor in ((1, 100), (2, 101), (keep, 102)):
            os.dup2(descriptor, target)
        random.seed(0)  # Python seeds every fork anew
        sys.argv = ["program.py"]
        confine.enter(limits)
        os.closerange(keep + 1, confinement.OPEN_FILES * 4)
        report_text = _report_on(program)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os.write(keep, report_text.encode("utf-8", "replace")[:_REPORT_BYTES])
        code = 0
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        os._exit(code)


def _report_on(program: str) -> str:
    try:
        exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})  # noqa: S102  # confined
    except SystemExit as error:
        return "ok " if error.code in (None, 0) else f"error SystemExit: {error.code}"
    except BaseException as error:
        line = _last_line(error)
        with contextlib.suppress(BaseException):
            ours = error.__traceback__  # the frame of this file is none of the program's
            trace = traceback.format_exception(type(error), error, ours and ours.tb_next)
            sys.stderr.write("".join(trace)[-_TRACEBACK_CHARACTERS:])
        return f"{_kind_of(error)} {line}"
    return "ok "


def _kind_of(error: BaseException) -> Verdict:
    if isinstance(error, MemoryError):
        return "memory"
    if isinstance(error, PermissionError) or "can't start new thread" in str(error):
        return "denied"
    if isinstance(error, OSError) and error.errno in (errno.EFBIG, errno.ENOSPC, errno.EDQUOT):
        return "disk"
    return "error"


def _last_line(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception_only(type(error), error)).strip().splitlines()[-1]
    except BaseException:  # its __str__ is the program's
        return type(error).__name__
