"""Programs, run several at once, each in a fork of a waiting interpreter (`zygote`)."""

from __future__ import annotations

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
from types import TracebackType

import megatron_dsmath
from megatron_dsmath.errors import SandboxError, UsageError
from megatron_dsmath.sandbox import confinement
from megatron_dsmath.sandbox.outcome import Limits, Outcome

PRELOADED_MODULES = ("numpy.random", "sympy")  # what models' programs import most, and what takes longest
# This package is found where it is, and then no more: programs see what is installed, and nothing beside it.
_START = (
    "import sys; sys.path[0] = sys.argv[1]; from megatron_dsmath.sandbox.fork_server import serve; "
    "del sys.path[0]; serve(sys.argv[3:], sys.argv[2])"
)
_START_SECONDS = 120.0
_SPARE_SECONDS = 10.0  # beyond a program's own limit, before its interpreter is taken for dead
# All that a program finds in os.environ. Without a fixed seed, a set of texts would have another order each time.
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
    """`workers` interpreters, started when they are first needed; a context manager.

    Raises SandboxError where this machine cannot confine a program: nothing is ever run unconfined.
    """

    def __init__(self, workers: int | None = None, modules: Sequence[str] = PRELOADED_MODULES) -> None:
        require_sandbox()
        self.workers = workers or len(os.sched_getaffinity(0))
        self._modules = tuple(modules)
        self._folder = tempfile.TemporaryDirectory(prefix="dsmath-sandbox-")
        self._idle: queue.SimpleQueue[_Interpreter | None] = queue.SimpleQueue()
        for _ in range(self.workers):
            self._idle.put(None)
        self._threads = ThreadPoolExecutor(self.workers, thread_name_prefix="sandbox")

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, program: str, text: str = "", limits: Limits | None = None) -> Outcome:
        """Run one program with `text` as its standard input; waits for a free interpreter."""
        interpreter = self._idle.get()
        try:
            if interpreter is None:
                interpreter = _Interpreter(self._modules, Path(self._folder.name))
            outcome = interpreter.run(program, text, limits or Limits())
            if outcome is None:  # it did not answer: another takes its place
                interpreter.close()
                interpreter = None
                return Outcome("error", "", "", "the interpreter ended with the program", 0.0)
            return outcome
        except BaseException:
            if interpreter is not None:
                interpreter.close()
                interpreter = None
            raise
        finally:
            self._idle.put(interpreter)

    def run_all(self, programs: Iterable[tuple[str, str]], limits: Limits | None = None) -> Iterator[Outcome]:
        """Run (program, standard input) pairs, `workers` at once; outcomes in their order."""
        return self._threads.map(lambda pair: self.run(pair[0], pair[1], limits), programs)

    @property
    def isolation(self) -> str:
        """What keeps a program in, on this machine; known once one has run."""
        interpreter = self._idle.get()
        self._idle.put(interpreter)
        behind = ", behind namespaces" if interpreter is not None and interpreter.namespaces else ""
        return f"Landlock and seccomp{behind}"

    def close(self) -> None:
        """End all interpreters and delete what was written."""
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            interpreter = self._idle.get()
            if interpreter is not None:
                interpreter.close()
        self._folder.cleanup()


def run_file(file: Path, timeout_seconds: float, memory_mib: int) -> str:
    """`dsmath sandbox`: the outcome of the program in `file`, as JSON. Raises UsageError where there is none."""
    if not (timeout_seconds > 0 and memory_mib > 0):
        raise UsageError(
            "a program's limits are wrong",
            where="--timeout, --memory",
            found=f"{timeout_seconds:g} s, {memory_mib} MiB",
            expected="more than nothing of each",
        )
    try:
        program = file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as error:
        raise UsageError(
            "the program cannot be read",
            where=file,
            found=error.strerror if isinstance(error, OSError) else f"{error}",
            expected="a file of Python in UTF-8",
        ) from None
    with Sandbox(workers=1) as sandbox:
        outcome = sandbox.run(program, limits=Limits(timeout_seconds, memory_mib))
    return json.dumps(outcome.as_dict(), ensure_ascii=False, indent=1)


def require_sandbox() -> None:
    """Raise SandboxError where a program could not be confined."""
    if confinement.is_supported():
        return
    raise SandboxError(
        "programs of a model cannot be run safely on this machine",
        where="the sandbox",
        found=f"{sys.platform} {platform.release()} on {platform.machine()}",
        expected="Linux 5.13 or later with Landlock and seccomp, on x86-64 or aarch64",
        fix="run the evaluation on such a machine or in a virtual machine of it, or evaluate without tools",
    )


class _Interpreter:
    """One zygote, and the pipe to it."""

    def __init__(self, modules: Sequence[str], root: Path) -> None:
        home = Path(tempfile.mkdtemp(dir=root))
        self._answers = b""
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
                "the interpreter that runs programs could not be started",
                where=sys.executable,
                found=f"exit code {self._process.returncode}",
                expected=f"a Python that imports {', '.join(modules) or 'nothing'}",
                fix="run `dsmath doctor`; its message is above",
            )
        self.namespaces: bool = json.loads(hello)["namespaces"]

    def run(self, program: str, text: str, limits: Limits) -> Outcome | None:
        """The outcome; None where the interpreter did not answer."""
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
        while b"\n" not in self._answers:
            ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(descriptor, 1 << 16) if ready else b""
            if not data:
                return None
            self._answers += data
        line, _, self._answers = self._answers.partition(b"\n")
        return line

    def close(self) -> None:
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    continue
        self._process.wait()
