"""Starts, watches and ends the N ranks of `--nproc N` on this machine, without torch."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from megatron_dsmath.errors import EXIT_DONE, EXIT_INTERNAL, EXIT_REFUSED, EXIT_STOPPED
from megatron_dsmath.files.processes import STOP_SIGNALS, handle_stop_signals, stop_signals_blocked

PARENT = "DSMATH_PARENT"  # the id of the process that starts the ranks; they die with it
GRACE_SECONDS = 20.0  # for the other ranks to report that a rank has ended


def run_ranks(arguments: Sequence[str], ranks: int) -> int:
    """Run `python -m megatron_dsmath ARGUMENTS` in `ranks` processes of one world; returns their common exit code.

    Stop signals are forwarded to every rank. When one rank fails, the others are killed after GRACE_SECONDS.
    """
    processes: list[subprocess.Popen[bytes]] = []

    def forward(number: int, _frame: object) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

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
        handlers = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        handle_stop_signals(forward)
        try:
            with stop_signals_blocked():
                for rank in range(ranks):
                    environment = {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                    # With a session for each rank, Ctrl-C reaches the ranks once, through this process.
                    processes.append(subprocess.Popen(command, env=environment, start_new_session=True))
            return _wait_for_all(processes)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            for process in processes:
                if process.poll() is None:
                    process.kill()


def _wait_for_all(processes: Sequence[subprocess.Popen[bytes]]) -> int:
    deadline: float | None = None
    reported: set[int] = set()
    while True:
        codes = [process.poll() for process in processes]
        _report_killed(codes, reported)
        if deadline is None and not {None, EXIT_DONE, EXIT_STOPPED}.issuperset(codes):
            deadline = time.monotonic() + GRACE_SECONDS
        if None not in codes:
            return _common_code(codes)
        if deadline is not None and time.monotonic() > deadline:
            for process in processes:
                process.kill()
            return _common_code([process.wait() for process in processes])
        time.sleep(0.05)


def _report_killed(codes: Sequence[int | None], reported: set[int]) -> None:
    for rank, code in enumerate(codes):
        if code is not None and code < 0 and rank not in reported:
            reported.add(rank)
            cause = " (by the system, if the machine is out of memory)" if code == -signal.SIGKILL else ""
            print(f"rank {rank} was killed by {signal.Signals(-code).name}{cause}", file=sys.stderr)


def _common_code(codes: Sequence[int | None]) -> int:
    # One rank's refusal decides: a restart cannot help, however the ranks that waited for it ended.
    for code in (EXIT_REFUSED, EXIT_INTERNAL, EXIT_STOPPED):
        if code in codes:
            return code
    return EXIT_DONE if set(codes) == {EXIT_DONE} else EXIT_INTERNAL
