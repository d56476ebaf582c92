"""Measure memory and time of `parallel.recompute`: one microbatch forward and backward on one CPU core, 3 settings.

Each setting runs in a separate process to measure its peak memory. `python benchmarks/recompute.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.model import decoder
from megatron_dsmath.model.loss import sum_by_group
from megatron_dsmath.parallel import optimizer as gradients
from megatron_dsmath.parallel.pipeline import DeviceBatch, run_microbatches
from megatron_dsmath.parallel.topology import initialize_topology
from tests.support.runs import run_config

SEQUENCE, HIDDEN, LAYERS, VOCABULARY = 2048, 512, 8, 4096
SETTINGS = ("none", "selective", "full")
MIB = 2**20


def build_run(precision: str, recompute: str) -> RunConfig:
    """A LLaMA with heads of 64 channels and one sequence per microbatch."""
    return run_config(
        precision=precision,
        parallel__recompute=recompute,
        parallel__microbatch_sequences=1,
        schedule__sequences_per_step=1,
        data__sequence_length=SEQUENCE,
        model__layers=LAYERS,
        model__hidden_size=HIDDEN,
        model__ffn_hidden_size=1376,
        model__attention_heads=HIDDEN // 64,
        model__key_value_heads=HIDDEN // 64,
        model__vocabulary_size=VOCABULARY,
        model__max_position_embeddings=SEQUENCE,
        model__initial_std=0.02,
    )


class SavedTensors:
    """The storages that autograd saves for the backward pass, without parameters."""

    def __init__(self, parameters: list[torch.Tensor]) -> None:
        self.storages: dict[int, int] = {}
        self._parameters = {tensor.untyped_storage().data_ptr() for tensor in parameters}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Record the storage of a saved tensor, which is returned unchanged."""
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._parameters:
            self.storages[storage.data_ptr()] = storage.nbytes()
        return tensor


def measure(precision: str, recompute: str, rounds: int) -> dict[str, float]:
    """CPU seconds (best of `rounds`), MiB saved at the end of the forward pass, and peak growth in MiB."""
    torch.set_num_threads(1)
    run = build_run(precision, recompute)
    topology = initialize_topology(run.parallel, run.seed)
    model_chunks = decoder.build(run, topology)
    decoder.load_weights(model_chunks, run.model, topology, decoder.WeightsFromSeed(run.model, run.seed))
    reduced = gradients.wrap_data_parallel(run, model_chunks, topology.data_size)
    tokens = torch.randint(0, VOCABULARY, (1, SEQUENCE + 1), generator=torch.Generator().manual_seed(1))
    batch = DeviceBatch(tokens, torch.ones(1, SEQUENCE), torch.zeros(1, 1, 1).long(), torch.zeros(1).long(), None)
    kept = SavedTensors([parameter for chunk in model_chunks for parameter in chunk.parameters()])
    found: dict[str, float] = {}

    def loss_of(nats: torch.Tensor, microbatch: DeviceBatch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        found.setdefault("kept_mib", sum(kept.storages.values()) / MIB)  # before the backward pass
        return sum_by_group(nats, microbatch, 1)

    def step() -> None:
        for chunk in reduced:
            chunk.zero_grad_buffer()
        run_microbatches(reduced, [batch], loss_of, backward=True)

    for chunk in reduced:
        chunk.zero_grad_buffer()  # allocates the gradients' memory, which is not measured
    before = _resident_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor):
        step()
    found["peak_mib"] = _resident_mib("VmHWM") - before
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        step()
        seconds.append(time.process_time() - started)
    return found | {"seconds": min(seconds)}


def _resident_mib(name: str) -> float:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) / 1024


def main() -> None:
    """Print a table; with --one, measure that setting in this process and print it as JSON."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--one", nargs=2, metavar=("PRECISION", "RECOMPUTE"))
    arguments = options.parse_args()
    if arguments.one:
        precision, recompute = arguments.one
        print(json.dumps(measure(precision, recompute, arguments.rounds)))
        return
    print(f"{LAYERS} layers, hidden {HIDDEN}, {SEQUENCE} tokens, one thread, load average {os.getloadavg()[0]:.2f}")
    print("| precision | recompute | kept after the forward pass | peak | CPU seconds | relative to none |")
    print("|---|---|---|---|---|---|")
    for precision in ("fp32", "bf16"):
        seconds_of_none = 0.0
        for recompute in SETTINGS:
            command = [sys.executable, __file__, "--rounds", str(arguments.rounds), "--one", precision, recompute]
            found = json.loads(subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout)
            seconds_of_none = seconds_of_none or found["seconds"]
            print(
                f"| {precision} | {recompute} | {found['kept_mib']:,.0f} MiB | {found['peak_mib']:,.0f} MiB "
                f"| {found['seconds']:.2f} | {found['seconds'] / seconds_of_none:.2f} |"
            )
    print(f"load average {os.getloadavg()[0]:.2f}")


if __name__ == "__main__":
    main()
