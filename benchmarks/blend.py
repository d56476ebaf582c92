"""Benchmarks the paper's mixture of 500B tokens: time and memory of the start, and deviation from the weights.

The corpora have the paper's sizes: an .idx with as many documents and a sparse .bin (`paper_corpora`). megatron-core
builds its blend of the same corpora at a smaller scale. Each implementation runs in its own process.
`python benchmarks/blend.py`, or `make bench`; the indices need 4 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.paper_corpora import SEQUENCE_LENGTH, SIZES, WEIGHTS, mixture, write_corpora
from megatron_dsmath.config.source import write
from megatron_dsmath.data.audit.audit import audit
from megatron_dsmath.data.audit.ledger import Ledger, StepHash, sample_hashes, step_hash
from megatron_dsmath.data.audit.ledger_totals import count_ledger
from megatron_dsmath.data.indexed.dataset import IndexedWriter
from megatron_dsmath.data.mixture.corpus_shards import Shards
from megatron_dsmath.data.mixture.mixture_batches import MixtureBatches
from megatron_dsmath.data.mixture.mixture_planning import plan_run
from megatron_dsmath.data.mixture.planned_corpora import planned_corpora
from tests.support.mixtures import only_phase
from tests.support.runs import tree

STEP_SAMPLES, STEPS = 2560, 47_684  # paper, section 2.3: 10M tokens per step, 500B in total
MOST_SECONDS, MOST_BYTES = 1.0, 300e6
VOCABULARY = 102_400


def open_batches(folder: Path, samples: int) -> MixtureBatches:
    """Open the batches as the start of a run does."""
    shards = Shards(None)
    config = mixture(folder)
    return MixtureBatches(plan_run(config, 1234, shards, [only_phase(config, samples)]), shards, VOCABULARY)


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Measure wall seconds and the peak of anonymous memory above the previous use, in bytes."""
    figures: dict[str, float] = {}
    done, largest, before = threading.Event(), [0], anonymous_bytes()

    def watch() -> None:
        while not done.wait(0.002):
            largest[0] = max(largest[0], anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        yield figures
        figures["seconds"] = time.perf_counter() - started
    finally:
        done.set()
        watcher.join()
    figures["bytes"] = max(largest[0], anonymous_bytes()) - before


def anonymous_bytes() -> int:
    """Return the memory of this process that is not mapped from files."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def ours(folder: Path, samples: int) -> dict[str, float]:
    """Measure the start up to the first batch of one of 64 data-parallel ranks, and steps early and late in the run."""
    with measured() as figures:
        batches = open_batches(folder, samples)
        batches.step_batches(0, STEP_SAMPLES, 1, 0, 64)
    best = {"early_seconds": float("inf"), "late_seconds": float("inf")}
    for turn in range(10):
        for name, step in zip(best, (1 + turn, samples // STEP_SAMPLES * 47_000 // STEPS + turn), strict=True):
            started = time.perf_counter()
            batches.step_batches(step * STEP_SAMPLES, STEP_SAMPLES, 1, 0, 64)
            best[name] = min(best[name], time.perf_counter() - started)
    started = time.perf_counter()
    planned = planned_corpora(batches.plan, batches.mixture(0))
    comparing = {"comparing_seconds": time.perf_counter() - started, "warnings": sum(row.unshuffled for row in planned)}
    return figures | best | comparing


def megatron_core(folder: Path, samples: int) -> dict[str, float]:
    """Measure the start up to its first 40 samples, with an empty cache."""
    import torch.distributed as dist
    from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    class Tokenizer:
        vocab_size, eod, pad, unique_identifiers = VOCABULARY, 0, 1, {"class": "none"}

    with measured() as figures, tempfile.TemporaryDirectory(dir=folder) as cache:
        config = GPTDatasetConfig(
            random_seed=1234,
            sequence_length=SEQUENCE_LENGTH,
            blend=([str(folder / name) for name in WEIGHTS], list(WEIGHTS.values())),
            split="1,0,0",
            path_to_cache=cache,
            tokenizer=Tokenizer(),
            reset_position_ids=False,
            reset_attention_mask=False,
            eod_mask_loss=False,
            create_attention_mask=False,
        )
        training, *_ = BlendedMegatronDatasetBuilder(GPTDataset, [samples, 0, 0], lambda: True, config).build()
        for sample in range(STEP_SAMPLES // 64):
            training[sample]
        figures["cache_bytes"] = sum(file.stat().st_size for file in Path(cache).iterdir())
    return figures


IMPLEMENTATIONS = {"ours": ours, "megatron-core": megatron_core}


def run(implementation: str, folder: Path, samples: int) -> dict[str, float]:
    """Run an implementation in its own process; imports are not measured."""
    command = [
        sys.executable,
        __file__,
        "--implementation",
        implementation,
        "--folder",
        str(folder),
        "--samples",
        str(samples),
    ]
    quiet = {**os.environ, "PYTHONWARNINGS": "ignore"}  # megatron-core's imports
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=quiet).stdout
    figures: dict[str, float] = json.loads(output)
    return figures


def start_is_quick(folder: Path, scale: float) -> bool:
    """Print time and memory of the start; return whether both are within their limits."""
    whole, part = folder / "whole", folder / "part"
    for corpora, size in ((whole, 1.0), (part, scale)):
        corpora.mkdir(parents=True, exist_ok=True)
        write_corpora(corpora, size)
    run("ours", whole, STEPS * STEP_SAMPLES)  # validates the indices
    figures = run("ours", whole, STEPS * STEP_SAMPLES)
    early, late = figures["early_seconds"], figures["late_seconds"]
    documents = sum(count for _, count in SIZES.values())
    print(f"500B tokens of five corpora, {documents / 1e6:.0f}M documents: {formatted(figures)} to the first batch")
    print(f"  (at most {MOST_SECONDS:g} s and {MOST_BYTES / 1e6:.0f} MB)  load {os.getloadavg()[0]:.2f}")
    print(f"  40 sequences at step 0: {1e3 * early:.1f} ms, at step 47,000: {1e3 * late:.1f} ms")
    print(
        f"  neighbours of all five compared in {figures['comparing_seconds']:.2f} s (at most {MOST_SECONDS:g} s)",
        end="",
    )
    print(f", {figures['warnings']} warnings (files of zeros: none)")
    samples = int(STEPS * scale) * STEP_SAMPLES
    print(f"at {scale:g} of that scale: ours {formatted(run('ours', part, samples))}", end="")
    theirs = run("megatron-core", part, samples)
    print(f", megatron-core {formatted(theirs)} and a cache of {theirs['cache_bytes'] / 1e6:,.0f} MB")
    is_compared = figures["comparing_seconds"] <= MOST_SECONDS and not figures["warnings"]
    is_quick = figures["seconds"] <= MOST_SECONDS and figures["bytes"] <= MOST_BYTES and late < 2 * early
    return is_quick and is_compared


def formatted(figures: dict[str, float]) -> str:
    """Format seconds and memory."""
    return f"{figures['seconds']:.2f} s, {figures['bytes'] / 1e6:,.0f} MB anonymous"


def plan_keeps_its_weights(folder: Path) -> bool:
    """Print the deviations of the paper's run at every 1%, from the plan and from its ledger."""
    plan = open_batches(folder / "whole", STEPS * STEP_SAMPLES).plan
    with tempfile.TemporaryDirectory() as scratch:
        ledger = Ledger(Path(scratch))
        ledger.write_plan(plan)
        for step in range(STEPS):
            ledger.append(1 + step, 0, step * STEP_SAMPLES, STEP_SAMPLES, StepHash(2**64 - 1 - step, step))
        size_bytes = ledger.plan_file.stat().st_size + ledger.steps_file.stat().st_size
        rows = ledger.read_rows()
    deviations, agree = [], True
    for percent in range(1, 101):
        end = STEPS * percent // 100
        planned, counted = plan.totals(end * STEP_SAMPLES), count_ledger(plan, rows[:end]).corpora
        agree &= [total.tokens for total in planned] == [corpus.tokens for corpus in counted]
        deviations.append(max(abs(total.samples - total.share * end * STEP_SAMPLES) for total in planned))
    epochs = ", ".join(f"{total.name} {total.epochs:.2f}" for total in plan.totals(STEPS * STEP_SAMPLES))
    print(f"the paper's run, at every 1% of it: at most {max(deviations):.2f} samples from a weight (at most 2)")
    print(f"  epochs: {epochs}")
    print(f"  plan and ledger agree: {agree}; the ledger of {STEPS:,} steps is {size_bytes / 1e6:.2f} MB (at most 20)")
    return agree and max(deviations) <= 2 and size_bytes < 20e6


def scaled_run_holds(folder: Path) -> bool:
    """Record a run of 1/20,000 of the tokens on 4 ranks, audit it, plant a fault and audit again."""
    scale, steps, sequence_length, ranks = 1 / 20_000, 100, 256, 4
    small, generator = folder / "small", np.random.default_rng(1)
    for name, (tokens, documents) in SIZES.items():
        with IndexedWriter(small / name, np.dtype(np.int32)) as writer:
            count = int(documents * scale)
            lengths = np.full(count, int(tokens * scale) // count)
            writer.add_documents(generator.integers(0, VOCABULARY, int(lengths.sum()), np.int32), lengths)
    samples = int(STEPS * STEP_SAMPLES * SEQUENCE_LENGTH * scale / sequence_length / steps) // ranks * ranks
    config, shards, output = mixture(small, sequence_length), Shards(None), folder / "run"
    plan = plan_run(config, 1234, shards, [only_phase(config, steps * samples)])
    batches, ledger = MixtureBatches(plan, shards, VOCABULARY), Ledger(output / "ledger")
    ledger.write_plan(plan)
    model = {"model__vocabulary_size": VOCABULARY, "model__max_position_embeddings": sequence_length}
    settings = tree(data=config.model_dump(mode="json"), **model)
    (output / "run.yaml").write_text(write(settings), encoding="utf-8")
    for step in range(steps):
        parts = [
            step_hash(sample_hashes(batch.tokens, batch.samples), batch.samples)
            for rank in range(ranks)
            for batch in batches.step_batches(step * samples, samples, 1, rank, ranks)
        ]
        total, moment = (sum(column) % 2**64 for column in zip(*parts, strict=True))
        ledger.append(1 + step, 0, step * samples, samples, StepHash(total, moment))
    started = time.perf_counter()
    found = audit(output)
    seconds, tokens = time.perf_counter() - started, steps * samples * sequence_length
    largest = max(corpus.largest_deviation_samples for corpus in found.totals.corpora)
    hours = 5e11 / tokens * seconds / 3600
    print(
        f"a run of {tokens / 1e6:.1f}M tokens in {steps} steps, audited: holds {found.holds}, after every step at most"
    )
    print(f"  {largest:.2f} samples off (at most 2); {tokens / seconds / 1e6:.1f}M tokens/s, so 500B in {hours:.1f} h")
    binary = np.memmap(small / "math.bin", np.int32, "r+")
    binary[len(binary) // 2] ^= 1
    binary.flush()
    planted = audit(output)
    print(f"  one bit changed in math.bin: {planted.faults[0].where if planted.faults else 'not found'}")
    return found.holds and largest <= 2 and not planted.holds


def main() -> int:
    """Print every measurement; return 0 if all are within their limits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, help="directory for the corpora, which are kept")
    parser.add_argument("--scale", type=float, default=0.2, help="scale of the corpora for megatron-core (0.2)")
    parser.add_argument("--implementation", choices=IMPLEMENTATIONS, help=argparse.SUPPRESS)
    parser.add_argument("--samples", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.implementation:
        print(json.dumps(IMPLEMENTATIONS[options.implementation](options.folder, options.samples)))
        return 0
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.folder or Path(scratch)
        held = [start_is_quick(folder, options.scale), plan_keeps_its_weights(folder), scaled_run_holds(Path(scratch))]
    return 0 if all(held) else 1


if __name__ == "__main__":
    sys.exit(main())
