"""Measure how long a checkpoint of 300M parameters pauses training, and how much it slows steps during the write.

Each layout saves several times with `Saver`. The pause is compared with a copy of the same number of bytes between warm
buffers, by all ranks at once; a step during the write is compared with a step without one; best of five each. Both are
also given in CPU seconds of the ranks, which other work on the machine affects least.
`python benchmarks/checkpoint.py` needs 12 GB of memory and 16 GB of disk.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.data.audit.ledger import Ledger
from megatron_dsmath.errors import OutputError
from megatron_dsmath.parallel.collectives import barrier, true_on_any_rank
from megatron_dsmath.parallel.state_parts import SHARDING, state_parts
from megatron_dsmath.parallel.topology import Topology
from megatron_dsmath.parallel.transformer import unwrap_decoder
from megatron_dsmath.training.checkpointing import Saver
from megatron_dsmath.training.run_directory import RunDirectory
from megatron_dsmath.training.state import State
from tests.support import training
from tests.support.ranks import run_ranks
from tests.support.runs import run_config

COPIES_AT_MOST, SLOWER_AT_MOST = 2.0, 1.3
ROUNDS = 5
COPIED_BYTES = 1 << 28  # much larger than the caches

MODEL: dict[str, Any] = {
    "layers": 22,
    "hidden_size": 1024,
    "ffn_hidden_size": 2752,
    "attention_heads": 16,
    "key_value_heads": 16,
    "vocabulary_size": 16384,
    "max_position_embeddings": 64,
    "norm_epsilon": 1e-6,
    "rope_theta": 10000.0,
    "initial_std": 0.02,
    "initial_weights": None,
    "kernels": "torch",
}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "TP2": (2, {"parallel__tensor": 2}),
    "PP2": (2, {"parallel__pipeline": 2}),
    "DP2, distributed optimizer": (2, {}),
}


class Figures(NamedTuple):
    """The measurements of one rank."""

    size_bytes: int
    copy: tuple[float, float]
    """Wall and CPU seconds, as in all pairs here."""
    first_save: tuple[float, float]
    later_saves: list[tuple[float, float]]
    write_seconds: float
    step: tuple[float, float]
    step_during_write: tuple[float, float]


def measure(run: RunConfig) -> Figures:
    """Train and save on this rank."""
    opened = training.start(run)
    directory = RunDirectory(Path(run.output))
    if opened.topology.rank == 0:
        directory.create()
        directory.ledger.mkdir()
        Ledger(directory.ledger).steps_file.touch()
    barrier()
    job: Any = SimpleNamespace(
        run=run,
        topology=opened.topology,
        directory=directory,
        tokenizer=SimpleNamespace(files=(), fingerprint="0" * 64),
        model_chunks=opened.model_chunks,
        optimizer=opened.updater,
        ledger=Ledger(directory.ledger),
    )
    buffers = torch.ones(COPIED_BYTES, dtype=torch.uint8), torch.zeros(COPIED_BYTES, dtype=torch.uint8)
    alone = best([timed_step(opened, number) for number in range(ROUNDS + 1)][1:])
    with Saver(job, raise_error) as saver:
        saves: list[tuple[float, float]] = []
        copies: list[tuple[float, float]] = []
        disturbed: list[tuple[float, float]] = []
        writes: list[float] = []
        while len(disturbed) < ROUNDS or len(saves) < ROUNDS + 1:
            step = ROUNDS + len(saves) + 1
            barrier()
            started, cpu = time.perf_counter(), time.process_time()
            saver.save(State(step=step))
            saves.append((time.perf_counter() - started, time.process_time() - cpu))
            poll(saver, opened.topology)
            while saver.is_saving:
                seconds = timed_step(opened, step)
                poll(saver, opened.topology)
                if saver.is_saving:  # the write lasted for the whole step
                    disturbed.append(seconds)
            writes.append(time.perf_counter() - started)
            copies.append(timed_copy(saver.size_bytes, *buffers))
        size_bytes = saver.size_bytes
    return Figures(size_bytes, best(copies[1:]), saves[0], saves[1:], min(writes), alone, best(disturbed))


def poll(saver: Saver, topology: Topology) -> None:
    """Advance the save in progress where no rank's writer is busy, as the loop does after a step."""
    (is_writing,) = true_on_any_rank([saver.is_writing()], topology)
    if not is_writing:
        saver.advance()


def raise_error(_: int, error: OutputError) -> None:
    """End the benchmark if a save fails."""
    raise error


def list_saved_tensors(run: RunConfig) -> list[tuple[float, float]]:
    """Best wall and CPU seconds to list the tensors that a rank saves: with megatron-core, which gathers, and ours."""
    opened = training.start(run)
    opened.step(0)
    weights = {"piece0": unwrap_decoder(opened.model_chunks[0]).sharded_state_dict(metadata=SHARDING)}
    functions: list[Callable[[], object]] = [
        lambda: opened.updater.sharded_state_dict(weights, is_loading=False, metadata=SHARDING),
        lambda: state_parts(opened.model_chunks, opened.updater),
    ]
    found: list[list[tuple[float, float]]] = [[], []]
    for _ in range(3):
        for function, seconds in zip(functions, found, strict=True):
            barrier()
            wall, cpu = time.perf_counter(), time.process_time()
            function()
            seconds.append((time.perf_counter() - wall, time.process_time() - cpu))
    return [best(seconds) for seconds in found]


def timed_step(opened: training.Training, number: int) -> tuple[float, float]:
    """Wall and CPU seconds of one step."""
    barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    opened.step(number)
    return time.perf_counter() - wall, time.process_time() - cpu


def best(seconds: list[tuple[float, float]]) -> tuple[float, float]:
    """The shortest wall and CPU times of the first rounds."""
    return min(wall for wall, _ in seconds[:ROUNDS]), min(cpu for _, cpu in seconds[:ROUNDS])


def timed_copy(size_bytes: int, source: torch.Tensor, target: torch.Tensor) -> tuple[float, float]:
    """Wall and CPU seconds to copy that many bytes between warm buffers on all ranks at the same time."""
    barrier()
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, size_bytes, COPIED_BYTES):
        length = min(COPIED_BYTES, size_bytes - start)
        target[:length].copy_(source[:length])
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> int:
    """Print the measurements of each layout; returns 1 if a limit is exceeded."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--only", default="", help="measure only layouts whose name contains this")
    options.add_argument("--layers", type=int, default=MODEL["layers"])
    arguments = options.parse_args()
    runs = {name: build_run(overrides, arguments.layers) for name, (_, overrides) in LAYOUTS.items()}
    held = True
    for name, (ranks, _) in LAYOUTS.items():
        if arguments.only not in name:
            continue
        with tempfile.TemporaryDirectory(prefix="dsmath-checkpoint-") as folder:
            run = runs[name].model_copy(update={"output": f"{folder}/run"})
            figures: list[Figures] = run_ranks(ranks, measure, run, timeout_seconds=600)
        held &= report(name, run.model.parameters, figures)
    if arguments.only in "gather":
        run = build_run({}, layers=2)  # megatron-core's way takes too much memory for all layers
        reference, own = run_ranks(2, list_saved_tensors, run)[0]
        print(f"DP2, {run.model.parameters / 1e6:.0f}M parameters: listing the tensors to save")
        print(f"  megatron-core, with gathering: {reference[0]:.2f} s, {reference[1]:.2f} CPU seconds")
        print(f"  ours, without: {own[0]:.3f} s, {own[1]:.3f} CPU seconds; load {os.getloadavg()[0]:.1f}")
    return 0 if held else 1


def build_run(overrides: dict[str, Any], layers: int) -> RunConfig:
    """The run to measure; two short sequences per step make a step short compared with the write."""
    return run_config(
        **overrides,
        precision="bf16",
        model={**MODEL, "layers": layers},
        data__sequence_length=64,
        schedule__sequences_per_step=2,
        parallel__microbatch_sequences=1,
    )


def report(name: str, parameters: int, ranks: list[Figures]) -> bool:
    """Print the measurements of a layout, of its slowest rank; returns whether the limits hold."""
    saves = [best(rank.later_saves) for rank in ranks]
    copies, copies_cpu = (
        max(save[kind] / rank.copy[kind] for save, rank in zip(saves, ranks, strict=True)) for kind in (0, 1)
    )
    slower, slower_cpu = (
        max(rank.step_during_write[kind] for rank in ranks) / max(rank.step[kind] for rank in ranks) for kind in (0, 1)
    )
    slowest = max(ranks, key=lambda rank: best(rank.later_saves))
    later = ", ".join(f"{wall:.2f}" for wall, _ in slowest.later_saves)
    print(f"{name}: {parameters / 1e6:.0f}M parameters, {max(rank.size_bytes for rank in ranks) / 1e9:.2f} GB per rank")
    print(f"  pause: first {slowest.first_save[0]:.2f} s, later {later} s; copy {slowest.copy[0]:.2f} s")
    print(f"  pause / copy: {copies:.2f} (at most {COPIES_AT_MOST:g}); {copies_cpu:.2f} in CPU seconds")
    print(f"  written and published after {slowest.write_seconds:.1f} s")
    print(
        f"  a step during the write: {slowest.step_during_write[0]:.2f} s for {slowest.step[0]:.2f}, {slower:.2f} times"
        f" (at most {SLOWER_AT_MOST:g}); {slower_cpu:.2f} in CPU seconds; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )
    return copies <= COPIES_AT_MOST and slower <= SLOWER_AT_MOST


if __name__ == "__main__":
    sys.exit(main())
