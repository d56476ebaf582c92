"""The build time, planning time and fill of a set as large as DeepSeekMath-Instruct's: 776K examples.

Rows are drawn with replacement from GSM8K, GSM-Hard, ToRA and TAL-SCQ5K, and a number makes each unique. The cost of
tokenizing alone is that of `dsmath data tokenize` on the same texts. Processor seconds count all processes; elapsed
seconds are meaningful on an otherwise idle machine.
`python benchmarks/sft_packing.py`, or `make bench-data`; takes 2 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import psutil

from megatron_dsmath.data.sft.build_set import build
from megatron_dsmath.data.sft.example_encoder import Options
from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.data.sft.packing import POLICIES, pack
from megatron_dsmath.data.sft.sources import sources_from_files
from megatron_dsmath.data.tokenizing.tokenize import tokenize

EXAMPLES, SEQUENCE_LENGTH = 776_000, 4096  # paper, section 3
FILES = ("gsm8k_train", "gsm_hard_pot", "tora_corpus_examples", "tal_scq5k_cn_train")
MOST_BUILD_SECONDS, MOST_BYTES, MOST_PLAN_SECONDS = 300.0, 1e9, 0.5
NEXT_FIT_TOLERANCE, LEAST_BEST_FIT = 0.005, 0.995


def write_conversations(data: Path, folder: Path, count: int) -> list[Path]:
    """Write `count` rows drawn from each file in proportion, and the same texts as documents; return the files."""
    draw = random.Random(0)
    rows = {name: (data / "sft" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines() for name in FILES}
    total = sum(map(len, rows.values()))
    paths = [folder / f"{name}.jsonl" for name in FILES]
    with (folder / "documents.jsonl").open("w") as documents:
        for path in paths:
            lines = rows[path.stem]
            with path.open("w") as file:
                for number in range(round(count * len(lines) / total)):
                    row = json.loads(draw.choice(lines))
                    texts = [value for value in row.values() if isinstance(value, str)]
                    field = next(name for name in ("question", "input", "problem", "messages") if name in row)
                    if field == "messages":
                        row[field][0]["content"] += f" ({number})"
                        texts = [message["content"] for message in row[field]]
                    else:
                        row[field] += f" ({number})"
                    file.write(json.dumps(row) + "\n")
                    documents.write(json.dumps({"text": "\n".join(texts)}) + "\n")
    return paths


class Cost:
    """Elapsed and processor seconds, and the peak of resident bytes in all processes together."""

    elapsed_seconds = processor_seconds = resident_bytes = 0.0


@contextmanager
def measured() -> Iterator[Cost]:
    """The cost of the `with` block. Pages that processes share are counted once (PSS)."""
    cost, ended, before = Cost(), threading.Event(), _processor_seconds()
    started = time.perf_counter()

    def watch() -> None:
        while not ended.wait(0.5):
            cost.resident_bytes = max(cost.resident_bytes, _resident_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield cost
    ended.set()
    watcher.join()
    cost.elapsed_seconds, cost.processor_seconds = time.perf_counter() - started, _processor_seconds() - before


def _processor_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _resident_bytes() -> float:
    own = psutil.Process()
    total = 0.0
    for process in [own, *own.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue  # it has ended
    return total


def next_fit(lengths: list[int]) -> int:
    """The number of sequences of a next-fit simulated example by example."""
    sequences, filled = 1, 0
    for length in lengths:
        if filled + length > SEQUENCE_LENGTH:
            sequences, filled = sequences + 1, 0
        filled += length
    return sequences


def plan_epochs(lengths: np.ndarray, judge: Callable[[str, bool], None]) -> None:
    """Plan an epoch with each policy, and judge time and fill."""
    shuffled = lengths.tolist()
    random.Random(1).shuffle(shuffled)
    simulated = sum(shuffled) / SEQUENCE_LENGTH / next_fit(shuffled)
    print(f"simulated next-fit  fill {simulated:.4%}")
    for policy in POLICIES:
        seconds = []
        for epoch in range(3):
            started = time.process_time()
            packing = pack(lengths, np.arange(len(lengths)), SEQUENCE_LENGTH, policy, 0, epoch)
            seconds.append(time.process_time() - started)
        fill = lengths.sum() / SEQUENCE_LENGTH / packing.sequence_count
        print(f"{policy:<19} fill {fill:.4%}  {packing.sequence_count:,} sequences  {max(seconds):.3f} s per epoch")
        tokens = np.bincount(packing.examples, packing.token_counts, len(lengths))
        judge(f"{policy}: no example is lost or repeated", bool((tokens == lengths).all()))
        judge(f"{policy}: an epoch is planned in {MOST_PLAN_SECONDS} s", max(seconds) <= MOST_PLAN_SECONDS)
        if policy == "next-fit":
            judge("next-fit: within half a point of the simulation", abs(fill - simulated) <= NEXT_FIT_TOLERANCE)
        elif policy == "best-fit":
            judge(f"best-fit: fills {LEAST_BEST_FIT:.1%}", fill >= LEAST_BEST_FIT)


def main() -> int:
    """Build, plan, and print which limits hold; return 1 where one does not."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--examples", type=int, default=EXAMPLES)
    parser.add_argument("--workers", type=int, default=2)
    default = Path(__file__).resolve().parent.parent.parent / "shared" / "data"
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("DSMATH_TEST_DATA", default)))
    options = parser.parse_args()
    failed: list[str] = []

    def judge(claim: str, holds: bool) -> None:
        print(f"{'yes' if holds else 'NO ':<5}{claim}")
        failed.extend([] if holds else [claim])

    with tempfile.TemporaryDirectory(prefix="dsmath-sft-") as name:
        folder, tokenizer = Path(name), options.data / "tokenizer" / "deepseek_llm"
        paths = write_conversations(options.data, folder, options.examples)
        with measured() as plain:
            tokenize([folder / "documents.jsonl"], tokenizer, folder / "documents", workers=options.workers)
        with measured() as built:
            report = build(sources_from_files(paths), tokenizer, folder / "set", Options(), workers=options.workers)
        for title, cost in (("tokenizing alone", plain), ("sft build", built)):
            print(
                f"{title:<19} {cost.elapsed_seconds:.1f} s elapsed  {cost.processor_seconds:.1f} s of processors  "
                f"{cost.resident_bytes / 1e6:.0f} MB resident"
            )
        print(f"{'':<19} {report.examples:,} examples, {report.tokens:,} tokens, {report.dropped:,} dropped")
        beyond = (built.processor_seconds - plain.processor_seconds) / options.workers
        print(f"{'beyond tokenizing':<19} {beyond:.1f} s on each of {options.workers} cores")
        judge(f"built within {MOST_BUILD_SECONDS:.0f} s beyond tokenizing", beyond <= MOST_BUILD_SECONDS)
        judge(f"within {MOST_BYTES / 1e9:.0f} GB resident", built.resident_bytes <= MOST_BYTES)
        plan_epochs(Examples(folder / "set").lengths, judge)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
