"""Start and control the process that writes this rank's checkpoints: shared memory, requests and answers."""

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
    """The result of a request: one of the two, or neither if there was no request."""

    done: dict[str, Any] | None = None
    refused: DsmathError | None = None


class BackgroundWriter:
    """A process of low priority (`checkpoint.writer_process`) that writes what this one puts into `memory`.

    The memory is allocated once: touching new memory takes ten times as long as copying into it.
    """

    def __init__(self, size_bytes: int) -> None:
        """Start the process. Raises OutputError if `size_bytes` of memory cannot be allocated."""
        descriptor, self.memory = _shared_memory(size_bytes)
        try:
            command = [sys.executable, "-m", "megatron_dsmath.checkpoint.writer_process"]
            with stop_signals_blocked():  # until the process ignores them
                # In the rank's own session: Linux divides CPU time between sessions before it considers niceness.
                self._process = subprocess.Popen(
                    [*command, str(os.getpid()), str(descriptor), str(size_bytes)],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    pass_fds=[descriptor],
                    bufsize=0,
                )
            self._input: Any = self._process.stdin
            self._output: Any = self._process.stdout
        finally:
            os.close(descriptor)
        self._is_pending = False

    @property
    def is_busy(self) -> bool:
        """Whether a request is in progress; does not wait."""
        return self._is_pending and not select.select([self._output], [], [], 0)[0]

    def ask(self, verb: str, **arguments: Any) -> None:
        """Send a request, a function of `checkpoint.writer_process` and its arguments; one at a time."""
        assert not self._is_pending
        self._is_pending = True
        line = json.dumps({"verb": verb, **arguments}) + "\n"
        with suppress(BrokenPipeError):  # `answer` reports the end of the process
            self._input.write(line.encode())

    def answer(self) -> Answer:
        """Wait for the answer to the request in progress."""
        if not self._is_pending:
            return Answer()
        self._is_pending = False
        line = bytearray()
        while not line.endswith(b"\n"):
            received = os.read(self._output.fileno(), 1 << 16)
            if not received:
                return Answer(refused=self._ended())
            line += received
        found = json.loads(line)
        if "done" in found:
            return Answer(done=found["done"])
        classes = {error.kind(): error for error in catalogue()}
        return Answer(refused=classes[found["refused"].pop("kind")](**found["refused"]))

    def close(self) -> None:
        """End the process, immediately if it is busy."""
        self._input.close()
        if self._is_pending:
            self._process.kill()
        try:
            self._process.wait(_CLOSING_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._output.close()

    def _ended(self) -> InternalError:
        code = self._process.wait()
        ending = f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = " (by the system, if memory ran out)" if code == -signal.SIGKILL else ""
        return InternalError(
            "the process that writes checkpoints has ended",
            where=f"process {self._process.pid}",
            found=ending + hint,
            expected="that it runs as long as the rank",
            fix="run again: the run continues from its newest checkpoint",
        )


def _shared_memory(size_bytes: int) -> tuple[int, mmap.mmap]:
    """An unnamed file, in memory where the system supports it: its descriptor and its mapped content."""
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
            "there is not enough memory for the copy of the state that is written while training continues",
            found=error.strerror,
            expected=f"{size_bytes:,} bytes for this rank",
            fix="use more ranks, or fewer on this machine",
        ) from error
