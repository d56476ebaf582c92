"""A rank's side of its writer: the memory both see, the request that is under way, and the answer."""

from __future__ import annotations

import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from typing import Any, NamedTuple

from megatron_dsmath.errors import DsmathError, InternalError, OutputError, catalogue
from megatron_dsmath.files.processes import stop_signals_blocked

_CLOSING_SECONDS = 10.0


class Answer(NamedTuple):
    """What became of a request: one of the two, or neither where nothing was asked."""

    done: dict[str, Any] | None = None
    refused: DsmathError | None = None


class BackgroundWriter:
    """A process of low priority (`checkpoint.writer`) that writes what this one puts into `memory`.

    The memory is there once, from the start: touching fresh memory takes ten times as long as copying into it.
    """

    def __init__(self, size_bytes: int) -> None:
        """Start the process. Raises OutputError where there is no room for `size_bytes` in memory."""
        descriptor, self.memory = _shared_memory(size_bytes)
        try:
            command = [sys.executable, "-m", "megatron_dsmath.checkpoint.writer_process"]
            with stop_signals_blocked():  # until it ignores them
                # In the rank's own session: Linux shares the processors out by session, and only then by niceness.
                self._process = subprocess.Popen(
                    [*command, str(os.getpid()), str(descriptor), str(size_bytes)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pass_fds=[descriptor],
                    bufsize=0,
                )
        finally:
            os.close(descriptor)
        self._is_asked = False

    @property
    def is_busy(self) -> bool:
        """Whether a request is under way; never waits."""
        return self._is_asked and not select.select([self._output], [], [], 0)[0]

    def ask(self, verb: str, **arguments: Any) -> None:
        """Have `checkpoint.writer` do something; there is one request at a time."""
        assert not self._is_asked
        self._is_asked = True
        line = json.dumps({"verb": verb, **arguments}) + "\n"
        with suppress(BrokenPipeError):  # `answer` says what became of the process
            self._input.write(line.encode())

    def answer(self) -> Answer:
        """Wait for the request that is under way."""
        if not self._is_asked:
            return Answer()
        self._is_asked = False
        line = bytearray()
        while not line.endswith(b"\n"):
            received = os.read(self._output.fileno(), 1 << 16)
            if not received:
                return Answer(refused=self._ended())
            line += received
        found = json.loads(line)
        return Answer(refused=_error(**found["refused"])) if "refused" in found else Answer(done=found["done"])

    def close(self) -> None:
        """End the process, at once if it is busy."""
        self._input.close()
        if self._is_asked:
            self._process.kill()
        try:
            self._process.wait(_CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()

    @property
    def _input(self) -> Any:
        return self._process.stdin

    @property
    def _output(self) -> Any:
        return self._process.stdout

    def _ended(self) -> InternalError:
        code = self._process.wait()
        killed = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        by_the_system = " (by the system, if memory ran out)" if code == -signal.SIGKILL else ""
        return InternalError(
            "the process that writes checkpoints has ended",
            where=f"process {self._process.pid}",
            found=killed + by_the_system,
            expected="that it lives as long as the run",
            fix="run again: the run continues from the checkpoint before",
        )


def _error(kind: str, **facts: Any) -> DsmathError:
    """An error of the writer, of the same class here."""
    classes = {error.kind(): error for error in catalogue()}
    return classes[kind](**facts)


def _shared_memory(size_bytes: int) -> tuple[int, mmap.mmap]:
    """A file without a name, by its descriptor, and its content; in memory where the system has such files."""
    try:
        if sys.platform.startswith("linux"):
            descriptor = os.memfd_create("dsmath-staging")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, size_bytes)
        touch_all = getattr(mmap, "MAP_POPULATE", 0)
        return descriptor, mmap.mmap(descriptor, size_bytes, flags=mmap.MAP_SHARED | touch_all)
    except OSError as error:
        raise OutputError(
            "there is no room in memory for the copy of the state that is written while the run goes on",
            found=error.strerror,
            expected=f"{size_bytes:,} bytes for this rank",
            fix="use more ranks, or fewer on this machine",
        ) from error
