"""A world of local ranks for one call: forked from a server that imported torch once, so that it costs 0.2 s, not 10.

Each call gets processes of its own. torch leaves the threads of gloo's groups behind, three for each, and they poll.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from megatron_dsmath.config.sections import ModelConfig, RunConfig
from megatron_dsmath.verify_layouts.compare import Measured, Tensors


def gpus() -> int:
    """CUDA devices of this machine."""
    import torch

    return torch.cuda.device_count()


def write_weights(model: ModelConfig, folder: Path) -> None:
    """As `weights.write_weights`."""
    from megatron_dsmath.verify_layouts import measure

    measure.write_weights(model, folder)


def measure(run: RunConfig, folder: Path, fault: str | None) -> Measured:
    """As `measure.measure`."""
    from megatron_dsmath.verify_layouts.measure import measure

    return measure(run, folder, fault)


def their_steps(runs: Sequence[RunConfig], folder: Path) -> list[tuple[float, Tensors]]:
    """As `witness.their_step`, of each run."""
    from megatron_dsmath.verify_layouts.measure import their_step

    return [their_step(run, folder) for run in runs]


_context = multiprocessing.get_context("forkserver")
_preloaded: dict[str, None] = {}


def preload(modules: Sequence[str]) -> None:
    """Have the server import `modules` too before the first rank is forked from it; later it has no effect."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # asked otherwise, CUDA starts, and bears no fork
    _preloaded.update(dict.fromkeys(modules))
    _context.set_forkserver_preload(list(_preloaded))


def run_ranks(
    size: int,
    function: Callable[..., Any],
    *arguments: Any,
    environment: Mapping[str, str] | None = None,
    timeout_seconds: float = 240,
) -> list[Any]:
    """Call `function(*arguments)` in `size` processes that find each other, and return what each returned.

    `function` is importable from the top level of a module; `environment` comes on top of this process's. Raises
    RuntimeError for the first rank that raised, with its traceback, died or did not answer.
    """
    with tempfile.TemporaryDirectory(prefix="dsmath-ranks-") as folder:
        connections, processes = [], []
        for rank in range(size):
            variables = {
                "GLOO_SOCKET_IFNAME": "lo",
                **(environment or {}),
                "RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_RANK": str(rank),
                "DSMATH_RENDEZVOUS": str(Path(folder) / "rendezvous"),
            }
            receiver, sender = _context.Pipe(duplex=False)
            process = _context.Process(target=_rank, args=(variables, sender, function, arguments), daemon=True)
            process.start()
            sender.close()
            connections.append(receiver)
            processes.append(process)
        try:
            return [_result(rank, receiver, timeout_seconds) for rank, receiver in enumerate(connections)]
        finally:
            for process in processes:
                process.kill()
            for process in processes:
                process.join()


def _result(rank: int, receiver: Connection, timeout_seconds: float) -> Any:
    if not receiver.poll(timeout_seconds):
        raise RuntimeError(f"rank {rank} did not answer within {timeout_seconds:g} s")
    try:
        failed, value = receiver.recv()
    except EOFError:
        raise RuntimeError(f"rank {rank} died") from None
    if failed:
        raise RuntimeError(f"rank {rank} failed:\n{value}")
    return value


def _rank(variables: dict[str, str], sender: Connection, function: Callable[..., Any], arguments: Any) -> None:
    os.environ.update(variables)
    import torch

    torch.set_num_threads(1)
    try:
        outcome = (False, function(*arguments))
    except BaseException:  # some of torch's are no Exception
        outcome = (True, traceback.format_exc())
    sender.send(outcome)
    sender.close()
    os._exit(0)  # a peer may be gone already; leaving the groups in order would wait for it
