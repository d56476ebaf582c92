"""`--nproc N`: N ranks on this machine, started, watched and ended together. Imports no torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from megatron_dsmath.errors import EXIT_DONE, EXIT_INTERNAL, EXIT_REFUSED, EXIT_STOPPED
from megatron_dsmath.files.processes import STOP_SIGNALS, handle_stop_signals, stop_signals_blocked

PARENT = "DSMATH_PARENT"  # the process whose end is the end of its ranks
GRACE_SECONDS = 20.0  # for the others to notice that a rank is gone and to say so


def run_ranks(arguments: Sequence[str], ranks: int) -> int:
    """Run `python -m megatron_dsmath ARGUMENTS` in `ranks` processes of one world; returns their common exit code.

    Signals that ask to stop reach every rank. When one rank fails, the others are ended.
    """
    with tempfile.TemporaryDirectory(prefix="dsmath-") as folder:
        threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, (os.cpu_count() or 1) // ranks))
        common = {
            **os.environ,
            "WORLD_SIZE": str(ranks),
            "DSMATH_RENDEZVOUS": str(Path(folder) / "rendezvous"),
            "OMP_NUM_THREADS": threads,
            PARENT: str(os.getpid()),
            "GLOO_SOCKET_IFNAME": os.environ.get("GLOO_SOCKET_IFNAME", "lo"),
        }
        command = [sys.executable, "-m", "megatron_dsmath", *arguments]
        processes: list[subprocess.Popen[bytes]] = []
        handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        handle_stop_signals(_forward_to(processes))
        try:
            with stop_signals_blocked():
                for rank in range(ranks):
                    environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                    # In sessions of their own: Ctrl-C reaches the ranks once, through us.
                    processes.append(subprocess.Popen(command, env=environment, start_new_session=True))
            return _wait(processes)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for process in processes:
                if process.poll() is None:
                    process.kill()


def _forward_to(processes: Sequence[subprocess.Popen[bytes]]) -> Callable[[int, object], None]:
    def forward(number: int, _frame: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    return forward


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    deadline: float | None = None
    named: set[int] = set()
    while True:
        codes = [process.poll() for process in processes]
        _name_killed(codes, named)
        if deadline is None and not {None, EXIT_DONE, EXIT_STOPPED}.issuperset(codes):
            deadline = time.monotonic() + GRACE_SECONDS
        if None not in codes:
            return _common_code(codes)
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                process.kill()
                process.wait()
            return _common_code([process.returncode for process in processes])
        time.sleep(0.05)


def _name_killed(codes: Sequence[int | None], named: set[int]) -> None:
    for rank, code in enumerate(codes):
        if code is not None and code < 0 and rank not in named:
            named.add(rank)
            advice = " (by the system, if memory ran out)" if code == -signal.SIGKILL else ""
            print(f"rank {rank} was killed by {signal.Signals(-code).name}{advice}", file=sys.stderr)


def _common_code(codes: Sequence[int | None]) -> int:
    # A refusal cannot be helped by a restart, whatever became of the ranks that waited for the one that refused.
    for code in (EXIT_REFUSED, EXIT_INTERNAL, EXIT_STOPPED):
        if code in codes:
            return code
    return EXIT_DONE if set(codes) == {EXIT_DONE} else EXIT_INTERNAL
