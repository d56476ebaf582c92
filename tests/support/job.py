"""Runs `dsmath train` on ranks, each as its own process, forked from the preloaded server."""

from __future__ import annotations

import multiprocessing
import os
import time
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple

import tests.support.ranks  # noqa: F401  # has the server import what ranks need

GRACE_SECONDS = 30.0  # for a rank whose peer has died; what a test allows is less
PATIENCE_SECONDS = 240.0


class Ending(NamedTuple):
    """How a job ended."""

    codes: list[int | None]
    """Exit code of each rank; negative for a signal, None for one that had to be ended."""
    seconds_to_follow: float
    """From the first rank's end to the last one's."""
    said: str
    """The output of all ranks."""


def run_job(run_file: Path, ranks: int, fault: str = "", *arguments: str) -> Ending:
    """Start the run on so many ranks of this machine, with what DSMATH_FAULT is to be, and wait for all of them.

    `arguments`: of `dsmath train`, after the run file.
    """
    folder = run_file.parent / f"job-{time.monotonic_ns()}"
    folder.mkdir()
    context = multiprocessing.get_context("forkserver")
    processes = []
    for rank in range(ranks):
        environment = {
            "RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_RANK": str(rank),
            "DSMATH_RENDEZVOUS": str(folder / "rendezvous"),
            "GLOO_SOCKET_IFNAME": "lo",
        }
        if fault:
            environment["DSMATH_FAULT"] = fault
        process = context.Process(
            target=_run_rank, args=(["train", str(run_file), *arguments], folder / f"output_{rank}", environment)
        )
        process.start()
        processes.append(process)
    try:
        seconds = _wait_for_all(processes)
        codes = [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.join()
    said = "".join((folder / f"output_{rank}").read_text(errors="replace") for rank in range(ranks))
    return Ending(codes, seconds, said)


def _wait_for_all(processes: list[Any]) -> float:
    """Seconds between the first end and the last, or GRACE_SECONDS where one does not follow."""
    deadline, first, last = time.monotonic() + PATIENCE_SECONDS, None, 0.0
    alive = {process.sentinel for process in processes}
    while alive and (left := deadline - time.monotonic()) > 0:
        ended = connection.wait(list(alive), left)
        alive -= set(ended)
        last = time.monotonic()
        if ended and first is None:
            first, deadline = last, min(deadline, last + GRACE_SECONDS)
    for process in processes:
        if process.sentinel not in alive:
            process.join()
    return GRACE_SECONDS if alive or first is None else last - first


def _run_rank(arguments: list[str], said: Path, environment: dict[str, str]) -> None:
    import gc
    import sys

    os.environ.update(environment)
    descriptor = os.open(said, os.O_WRONLY | os.O_CREAT)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout = sys.stderr = open(descriptor, "w", buffering=1)  # noqa: SIM115, PTH123
    import torch

    from megatron_dsmath import cli

    torch.set_num_threads(1)
    gc.freeze()
    os._exit(cli.main(arguments))
