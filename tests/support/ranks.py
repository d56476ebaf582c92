"""n gloo ranks in one test: forked from a server that has imported torch and megatron-core once (0.2 s, not 16)."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["torch", "tests.support.preload"])


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any, timeout_seconds: float = 240) -> list[Any]:
    """Call `function(*arguments)` in `size` processes that find each other, and return what each returned.

    `function` must be importable (top level of a test module). Raises the first rank's failure with its traceback.
    """
    with tempfile.TemporaryDirectory(prefix="dsmath-ranks-") as folder:
        receivers, processes = [], []
        for rank in range(size):
            receiver, sender = _context.Pipe(duplex=False)
            environment = {
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_RANK": str(rank),
                "DSMATH_RENDEZVOUS": str(Path(folder) / "rendezvous"),
                "GLOO_SOCKET_IFNAME": "lo",
            }
            process = _context.Process(target=_rank, args=(environment, sender, function, arguments), daemon=True)
            process.start()
            sender.close()
            receivers.append(receiver)
            processes.append(process)
        try:
            return [_result(rank, receiver, timeout_seconds) for rank, receiver in enumerate(receivers)]
        finally:
            for process in processes:
                process.kill()
                process.join()


def _result(rank: int, receiver: Any, timeout_seconds: float) -> Any:
    if not receiver.poll(timeout_seconds):
        raise TimeoutError(f"rank {rank} did not answer within {timeout_seconds} s")
    try:
        failed, value = receiver.recv()
    except EOFError:
        raise RuntimeError(f"rank {rank} died") from None
    if failed:
        raise RuntimeError(f"rank {rank} failed:\n{value}")
    return value


def _rank(environment: dict[str, str], sender: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    os.environ.update(environment)
    import torch

    torch.set_num_threads(1)
    try:
        outcome = (False, function(*arguments))
    except BaseException:
        outcome = (True, traceback.format_exc())
    sender.send(outcome)
    sender.close()
    os._exit(0)  # a peer may be gone already; leaving the groups in order would wait for it
