"""Run programs in a pool of interpreters. Each program runs in a fork of a waiting interpreter (`fork_server`)."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import queue
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import megatron_dsmath
from megatron_dsmath.errors import SandboxError, UsageError
from megatron_dsmath.sandbox import confinement
from megatron_dsmath.sandbox.outcome import Limits, Outcome

PRELOADED_MODULES = ("numpy.random", "sympy")  # slow imports that most models' programs use
# sys.path has this package's folder only while it is imported: programs can import installed packages alone.
_START = (
    "import sys; sys.path[0] = sys.argv[1]; from megatron_dsmath.sandbox.fork_server import serve; "
    "del sys.path[0]; serve(sys.argv[3:], sys.argv[2])"
)
_START_SECONDS = 120.0
_SPARE_SECONDS = 10.0  # after a program's own timeout, until its interpreter counts as dead
# The complete environment of a program. The hash seed is fixed so that sets of strings always have the same order.
_ENVIRONMENT = {
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "LANG": "C.UTF-8",
    "TZ": "UTC",
}


class Sandbox:
    """A pool of `workers` interpreters, each started when it is first needed; a context manager.

    Raises SandboxError if this machine cannot confine a program. No program ever runs unconfined.
    """

    def __init__(self, workers: int | None = None, modules: Sequence[str] = PRELOADED_MODULES) -> None:
        require_sandbox()
        workers = workers or len(os.sched_getaffinity(0))
        self._modules = tuple(modules)
        self._folder = tempfile.TemporaryDirectory(prefix="dsmath-sandbox-")
        self._idle: queue.SimpleQueue[_Interpreter | None] = queue.SimpleQueue()
        for _ in range(workers):
            self._idle.put(None)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *_: object) -> None:
        """End all interpreters and delete their files."""
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            interpreter = self._idle.get()
            if interpreter is not None:
                interpreter.close()
        self._folder.cleanup()

    def run(self, program: str, text: str = "", limits: Limits | None = None) -> Outcome:
        """Wait for a free interpreter and run one program with `text` as its standard input."""
        interpreter, outcome = self._idle.get(), None
        try:
            interpreter = interpreter or _Interpreter(self._modules, Path(self._folder.name))
            outcome = interpreter.run(program, text, limits or Limits())
        finally:
            if interpreter is not None and outcome is None:  # it is dead or in an unknown state
                interpreter.close()
                interpreter = None  # the next program starts a new one
            self._idle.put(interpreter)
        return outcome or Outcome("error", "", "", "the interpreter ended with the program", 0.0)

    def run_all(self, programs: Iterable[tuple[str, str]], limits: Limits | None = None) -> Iterator[Outcome]:
        """Run (program, standard input) pairs, up to `workers` at once; yield the outcomes in the same order."""
        return self._threads.map(lambda pair: self.run(pair[0], pair[1], limits), programs)

    @property
    def isolation(self) -> str:
        """The kernel features that confine programs here. Namespaces are known after the first program."""
        interpreter = self._idle.get()
        self._idle.put(interpreter)
        namespaces = ", behind namespaces" if interpreter is not None and interpreter.namespaces else ""
        return f"Landlock and seccomp{namespaces}"


def run_file(file: Path, timeout_seconds: float, memory_mib: int) -> str:
    """Run the program in `file` for `dsmath sandbox`; return the outcome as JSON. Raises UsageError."""
    if not (timeout_seconds > 0 and memory_mib > 0):
        raise UsageError(
            "a limit of the program is not positive",
            where="--timeout, --memory",
            found=f"{timeout_seconds:g} s, {memory_mib} MiB",
            expected="positive numbers",
        )
    try:
        program = file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UsageError(
            "the program cannot be read",
            where=file,
            found=error.strerror if isinstance(error, OSError) else f"{error}",
            expected="a Python file in UTF-8",
        ) from None
    with Sandbox(workers=1) as sandbox:
        outcome = sandbox.run(program, limits=Limits(timeout_seconds, memory_mib))
    return json.dumps(outcome._asdict(), ensure_ascii=False, indent=1)


def require_sandbox() -> None:
    """Raise SandboxError if this machine cannot confine a program."""
    if not confinement.is_supported():
        raise SandboxError(
            "this machine cannot run a model's programs safely",
            where="the sandbox",
            found=f"{sys.platform} {platform.release()} on {platform.machine()}",
            expected="Linux 5.13 or later with Landlock and seccomp, on x86-64 or aarch64",
            fix="run the evaluation on such a machine or in a virtual machine, or evaluate without tools",
        )


class _Interpreter:
    """A fork server and the pipes to it."""

    def __init__(self, modules: Sequence[str], root: Path) -> None:
        home = Path(tempfile.mkdtemp(dir=root))
        self._received = b""
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-c", _START, str(Path(megatron_dsmath.__file__).parents[1]), str(home), *modules],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=home,
            env=_ENVIRONMENT,
            start_new_session=True,
        )
        hello = self._read_line(_START_SECONDS)
        if hello is None:
            self.close()
            raise SandboxError(
                "the interpreter that runs programs did not start",
                where=sys.executable,
                found=f"exit code {self._process.returncode}",
                expected=f"a Python that imports {', '.join(modules) or 'nothing'}",
                fix="read its message above and run `dsmath doctor`",
            )
        self.namespaces: bool = json.loads(hello)["namespaces"]

    def run(self, program: str, text: str, limits: Limits) -> Outcome | None:
        """The outcome of a program; None if the interpreter does not answer."""
        request = {"program": program, "input": text, "limits": limits._asdict()}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            return None
        answer = self._read_line(limits.timeout_seconds + _SPARE_SECONDS)
        return None if answer is None else Outcome(**json.loads(answer))

    def _read_line(self, seconds: float) -> bytes | None:
        assert self._process.stdout is not None
        descriptor, deadline = self._process.stdout.fileno(), time.monotonic() + seconds
        while b"\n" not in self._received:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(descriptor, 1 << 16) if ready else b""
            if not data:
                return None
            self._received += data
        line, _, self._received = self._received.partition(b"\n")
        return line

    def close(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self._process.wait()
