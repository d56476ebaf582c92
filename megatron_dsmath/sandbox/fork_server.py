"""An interpreter that imports modules once and runs each program in a confined fork of itself.

`pool` starts it with an empty environment in an empty directory. A request is a line of JSON on standard input,
`{"program", "input", "limits"}`. The answer is a line of JSON on standard output, `Outcome` as a dictionary. The
output of a program is only ever treated as text.
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

_CHECK_SECONDS = 0.05  # between two checks of the scratch directory
_READ_BYTES = 1 << 16
_REPORT_BYTES = 4096
_TRACEBACK_CHARACTERS = 8192  # the end of a longer one
_REPORT_DESCRIPTOR = 3
_PR_SET_PDEATHSIG = 1
_LIMIT_ERRORS: dict[Verdict, str] = {
    "timeout": "the program took too long",
    "output": "the program printed too much",
    "disk": "the program wrote too much",
}
_REPORTED: tuple[Verdict, ...] = ("ok", "error", "memory", "denied", "disk")


def serve(modules: list[str], root: str) -> None:
    """Import `modules`, report readiness, then answer requests until standard input ends."""
    answers = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # imports may print to standard output
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for module in modules:
        importlib.import_module(module)
    sys.stdout.flush()  # otherwise every fork would print what is buffered
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)  # every program draws the same random numbers
    namespaces = confinement.leave_namespaces()
    folder = Path(tempfile.mkdtemp(dir=root))
    confine = Confinement(folder)
    gc.freeze()
    gc.disable()  # a collection would write to, and so copy, every page that the forks share
    _write_line(answers, {"namespaces": namespaces})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        outcome = _run_in_fork(request["program"], request["input"], Limits(**request["limits"]), folder, confine)
        _empty(folder)
        _write_line(answers, outcome._asdict())


def _write_line(descriptor: int, message: object) -> None:
    data = json.dumps(message).encode() + b"\n"
    while data:
        data = data[os.write(descriptor, data) :]


def _run_in_fork(program: str, text: str, limits: Limits, folder: Path, confine: Confinement) -> Outcome:
    with tempfile.TemporaryFile() as stdin:
        stdin.write(text.encode("utf-8", "surrogatepass"))
        stdin.seek(0)
        pipes = {name: os.pipe() for name in ("stdout", "stderr", "report")}
        started = time.monotonic()
        child = os.fork()
        if child == 0:
            os.chdir(folder)
            _run_program(program, stdin.fileno(), [write for _, write in pipes.values()], limits, confine)
    for _, write in pipes.values():
        os.close(write)
    names = {read: name for name, (read, _) in pipes.items()}
    texts = {name: bytearray() for name in pipes}
    try:
        exceeded = _read_until_closed(names, texts, limits, started + limits.timeout_seconds, folder)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        for descriptor in names:
            os.close(descriptor)
    report = bytes(texts["report"])
    verdict, error = (exceeded, _LIMIT_ERRORS[exceeded]) if exceeded else _verdict_of_process(status, report)
    stdout, stderr = (texts[name].decode("utf-8", "replace") for name in ("stdout", "stderr"))
    return Outcome(verdict, stdout, stderr, error, round(time.monotonic() - started, 4))


def _read_until_closed(
    names: dict[int, str], texts: dict[str, bytearray], limits: Limits, deadline: float, folder: Path
) -> Verdict | None:
    """Append the program's output to `texts` until the program ends or exceeds a limit; return that limit's verdict.

    `names` has the name of each stream by descriptor. No stream is read further than its limit.
    """
    open_descriptors = set(names)
    while open_descriptors:
        left = deadline - time.monotonic()
        if left <= 0:
            return "timeout"
        ready, _, _ = select.select(open_descriptors, [], [], min(left, _CHECK_SECONDS))
        for descriptor in ready:
            data, name = os.read(descriptor, _READ_BYTES), names[descriptor]
            if not data:
                open_descriptors.remove(descriptor)
            room = (_REPORT_BYTES if name == "report" else limits.output_bytes) - len(texts[name])
            texts[name] += data[:room]
            if len(data) > room:
                return "output"
        if not ready and _exceeds_limits(folder, limits):
            return "disk"
    return "disk" if _exceeds_limits(folder, limits) else None


def _exceeds_limits(folder: Path, limits: Limits) -> bool:
    """Whether a directory has more entries or bytes than allowed; stops counting there."""
    entries, used_bytes, waiting = 0, 0, [folder]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as found:
                for entry in found:
                    entries += 1
                    used_bytes += entry.stat(follow_symlinks=False).st_size
                    if entries > limits.files or used_bytes > limits.disk_bytes:
                        return True
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(Path(entry.path))
        except OSError:  # changed while it was read, or not readable: the next check counts its files
            continue
    return False


def _empty(folder: Path) -> None:
    """Delete everything in a directory. Subdirectories are first moved to the top, so that no path is too long."""
    numbers = count()
    while entries := list(folder.iterdir()):
        for path in entries:
            if not _is_directory(path):
                path.unlink()
                continue
            path.chmod(0o700)
            for inner in path.iterdir():
                if _is_directory(inner):
                    inner.chmod(0o700)  # moving a directory changes its entry `..`
                inner.rename(folder / f".lifted-{next(numbers)}-{os.getpid()}")
            path.rmdir()


def _is_directory(path: Path) -> bool:
    return stat.S_ISDIR(path.lstat().st_mode)


def _verdict_of_process(status: int, report: bytes) -> tuple[Verdict, str]:
    """Verdict and error of a program that ended within its limits, from its exit status and its report."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        verdicts: dict[int, Verdict] = {signal.SIGXCPU: "timeout", signal.SIGKILL: "timeout", signal.SIGXFSZ: "disk"}
        return verdicts.get(number, "error"), f"ended by {signal.Signals(number).name}"
    kind, _, error = report.decode("utf-8", "replace").partition(" ")
    for verdict in _REPORTED:
        if kind == verdict:
            return verdict, error
    return "error", f"the program left with exit code {os.WEXITSTATUS(status)}"


def _run_program(program: str, stdin: int, outputs: list[int], limits: Limits, confine: Confinement) -> NoReturn:
    """In the fork: confine the process, run the program, write the report, exit."""
    code = 1
    try:
        os.dup2(stdin, 0)
        for target, descriptor in enumerate(outputs, 100):  # away from descriptors 0 to 3
            os.dup2(descriptor, target)
        for target, descriptor in ((1, 100), (2, 101), (_REPORT_DESCRIPTOR, 102)):
            os.dup2(descriptor, target)
        random.seed(0)  # Python seeds every fork differently
        sys.argv = ["program.py"]
        confine.apply(limits)
        os.closerange(_REPORT_DESCRIPTOR + 1, confinement.OPEN_FILES * 4)
        report = _execute(program)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os.write(_REPORT_DESCRIPTOR, report.encode("utf-8", "replace")[:_REPORT_BYTES])
        code = 0
    except BaseException:
        with contextlib.suppress(BaseException):
            traceback.print_exc()
    finally:
        os._exit(code)


def _execute(program: str) -> str:
    """Execute the program's text; return a report: a verdict, a space, and the error."""
    try:
        exec(compile(program, "program.py", "exec"), {"__name__": "__main__"})  # noqa: S102  # confined
    except SystemExit as error:
        return "ok " if error.code in (None, 0) else f"error SystemExit: {error.code}"
    except BaseException as error:
        line = _last_line(error)
        with contextlib.suppress(BaseException):
            own_frame = error.__traceback__  # this function's; not shown
            trace = traceback.format_exception(type(error), error, own_frame and own_frame.tb_next)
            sys.stderr.write("".join(trace)[-_TRACEBACK_CHARACTERS:])
        return f"{_verdict_of_error(error)} {line}"
    return "ok "


def _verdict_of_error(error: BaseException) -> Verdict:
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
    except BaseException:  # the program may define __str__
        return type(error).__name__
