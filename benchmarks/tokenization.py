"""Tokenization speed in CPU seconds: our encoder, the `tokenizers` and `sentencepiece` libraries, a plain script.

The encoders take turns on slices of one corpus in one process. Ours begins with an empty cache and keeps it between
slices, as in a run. On the large corpus the libraries encode every tenth text of each slice, and the ids of these texts
are compared. `python benchmarks/tokenization.py`, or `make bench-data`; on an idle machine also with `--workers`.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import sentencepiece
import tokenizers

from benchmarks.real_text import texts_of_test_data, texts_of_this_machine
from megatron_dsmath.data.indexed.dataset import IndexedDataset, IndexedWriter
from megatron_dsmath.data.tokenizing.tokenize import tokenize
from megatron_dsmath.data.tokenizing.tokenizer import load_tokenizer

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("DSMATH_TEST_DATA", ROOT.parent / "shared" / "data"))
DEEPSEEK = DATA / "tokenizer" / "deepseek_llm"
BPE = DATA / "tokenizer" / "sentencepiece" / "internlm_bpe_103168.model"
UNIGRAM = DATA / "tokenizer" / "sentencepiece" / "test_unigram_1000.model"
SLICES = 10
Encode = Callable[[Sequence[str]], list[list[int]]]


class Rate(NamedTuple):
    """The amount of text encoded, and the time it took."""

    megabytes: float
    cpu_seconds: float

    def __str__(self) -> str:
        return f"{self.megabytes / self.cpu_seconds:.2f} MB/s ({self.megabytes:.1f} MB in {self.cpu_seconds:.1f} CPU s)"


def cpu_seconds() -> float:
    """CPU time of this process with its threads, and of its children that have ended."""
    return cpu_seconds_of(resource.RUSAGE_SELF) + cpu_seconds_of(resource.RUSAGE_CHILDREN)


def cpu_seconds_of(processes: int) -> float:
    """CPU time of this process with its threads, or of its children that have ended."""
    usage = resource.getrusage(processes)
    return usage.ru_utime + usage.ru_stime


def megabytes(texts: Sequence[str]) -> float:
    """The size of `texts` in UTF-8."""
    return sum(len(text.encode()) for text in texts) / 1e6


def hugging_face(folder: Path) -> Encode:
    """The `tokenizers` library, as a user calls it."""
    engine = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    engine.encode_special_tokens = True  # literals of special tokens are text, as in our encoder
    return lambda texts: [encoding.ids for encoding in engine.encode_batch(texts, add_special_tokens=False)]


def sentence_piece(model: Path) -> Encode:
    """The `sentencepiece` library, as a user calls it."""
    engine = sentencepiece.SentencePieceProcessor(model_file=str(model))
    return lambda texts: [engine.encode(text) for text in texts]


def compare(name: str, tokenizer: Path, theirs: Encode, texts: Sequence[str], every: int, at_least: float) -> bool:
    """Encode all `texts` with ours, every `every`-th with `theirs`; True if ids match and ours is fast enough."""
    ours = load_tokenizer(tokenizer).encode_batch  # includes what it loads for the first texts
    sums = {"ours": [0.0, 0.0], "theirs": [0.0, 0.0]}
    equal = True
    for number in range(SLICES):
        part = texts[number::SLICES]
        sample = part[::every]
        ids = {}
        for encoder, encode, share in (("theirs", theirs, sample), ("ours", ours, part)):
            started = cpu_seconds()
            ids[encoder] = encode(share)
            sums[encoder][0] += megabytes(share)
            sums[encoder][1] += cpu_seconds() - started
        equal &= ids["ours"][::every] == ids["theirs"]
    own, other = Rate(*sums["ours"]), Rate(*sums["theirs"])
    ratio = own.megabytes / own.cpu_seconds / (other.megabytes / other.cpu_seconds)
    print(f"{name}: ours {own}, library {other}, ids {'equal' if equal else 'DIFFER'}")
    print(f"  ratio {ratio:.1f} (at least {at_least})  load {os.getloadavg()[0]:.2f}", flush=True)
    return equal and ratio >= at_least


def compare_tools(texts: Sequence[str], workers: int, at_least: float) -> bool:
    """Compare the tokenize command with a plain script, both from JSONL to .bin and .idx."""
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder, "corpus.jsonl"), texts)
        measured = {}
        for name, run in (("script", plain_script), ("ours", own_tool)):
            started, wall = cpu_seconds(), time.perf_counter()
            run(corpus, Path(folder, name), workers)
            measured[name] = cpu_seconds() - started, time.perf_counter() - wall
        ours, script = (IndexedDataset(Path(folder, name)) for name in ("ours", "script"))
        equal = np.array_equal(ours.tokens, script.tokens) and np.array_equal(ours.lengths, script.lengths)
    ratio = measured["script"][0] / measured["ours"][0]
    shown = ", ".join(f"{name} {cpu:.1f} CPU s, {wall:.1f} s" for name, (cpu, wall) in measured.items())
    print(f"whole tool, {workers} workers, {megabytes(texts):.1f} MB: {shown}, tokens {'equal' if equal else 'DIFFER'}")
    print(f"  ratio {ratio:.1f} (at least {at_least})  load {os.getloadavg()[0]:.2f}", flush=True)
    return equal and ratio >= at_least


class Cost(NamedTuple):
    """The time of one run, in seconds: wall time, and CPU time of the parent and of the workers."""

    wall: float
    parent_cpu: float
    workers_cpu: float

    def __str__(self) -> str:
        return f"{self.wall:.1f} s (CPU: parent {self.parent_cpu:.1f}, workers {self.workers_cpu:.1f})"


def compare_workers(texts: Sequence[str], rounds: int, at_least: float) -> bool:
    """Compare the wall time of two workers with that of one, best of several rounds, on an idle machine.

    One worker is the parent process itself. On a busy machine, the CPU seconds give an upper bound of the speedup: 2
    times the CPU seconds of the run with one worker, divided by those of the run with two (parent and workers).
    """
    best: dict[int, Cost] = {}
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_corpus(Path(folder, "corpus.jsonl"), texts)
        for _ in range(rounds):
            for workers in (1, 2):
                cost = cost_of(lambda workers=workers: own_tool(corpus, Path(folder, f"out{workers}"), workers))
                best[workers] = min(best.get(workers, cost), cost)
                print(f"  {workers} worker(s): {cost}  load {os.getloadavg()[0]:.2f}", flush=True)
        equal = Path(folder, "out1.bin").read_bytes() == Path(folder, "out2.bin").read_bytes()
    one, two = best[1], best[2]
    ratio, bound = one.wall / two.wall, 2 * one.parent_cpu / (two.parent_cpu + two.workers_cpu)
    print(f"two workers, {megabytes(texts):.1f} MB, best of {rounds}: {one.wall:.1f} s and {two.wall:.1f} s")
    print(
        f"  ratio {ratio:.2f} (at least {at_least}), {bound:.2f} by CPU seconds, bytes {'equal' if equal else 'DIFFER'}"
    )
    return equal and ratio >= at_least


def cost_of(run: Callable[[], object]) -> Cost:
    """The cost of one call, whose child processes must have ended."""
    own, children, started = *map(cpu_seconds_of, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)), time.perf_counter()
    run()
    wall = time.perf_counter() - started
    return Cost(wall, cpu_seconds_of(resource.RUSAGE_SELF) - own, cpu_seconds_of(resource.RUSAGE_CHILDREN) - children)


def write_corpus(path: Path, texts: Sequence[str]) -> Path:
    """Write one text per line."""
    with path.open("w") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    return path


def own_tool(corpus: Path, out: Path, workers: int) -> None:
    """Tokenize as `dsmath data tokenize` does."""
    tokenize([corpus], DEEPSEEK, out, workers=workers)


def plain_script(corpus: Path, out: Path, workers: int) -> None:
    """Tokenize as Megatron's preprocess_data.py does: a pool of processes encodes lines, one process writes."""
    end = load_tokenizer(DEEPSEEK).end_of_document
    with (
        corpus.open() as lines,
        multiprocessing.get_context("spawn").Pool(workers, start_script_worker) as pool,
        IndexedWriter(out, np.dtype(np.int32)) as writer,
    ):
        for ids in pool.imap(encode_line, lines, chunksize=32):
            writer.add_document([*ids, end] if ids else [])
        pool.close()
        pool.join()


def start_script_worker() -> None:
    """Load the tokenizer once per process."""
    global script_engine
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    script_engine = hugging_face(DEEPSEEK)


def encode_line(line: str) -> list[int]:
    """Encode one line in a worker of the script."""
    return script_engine([json.loads(line)["text"]])[0]


script_engine: Encode


def main() -> int:
    """Print every comparison; return 1 if ids differ or a ratio is below its limit."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--megabytes", type=int, default=210)
    options.add_argument("--workers", action="store_true", help="only compare two workers with one, on twice the text")
    options.add_argument("--rounds", type=int, default=5, help="number of rounds for --workers")
    arguments = options.parse_args()
    print(f"load average {os.getloadavg()[0]:.2f}, tokenizers {tokenizers.__version__}, numpy {np.__version__}")
    if arguments.workers:
        texts = texts_of_this_machine(2 * arguments.megabytes * 1_000_000) + texts_of_test_data(DATA)
        return 0 if compare_workers(texts, arguments.rounds, 1.8) else 1
    machine, data = texts_of_this_machine(arguments.megabytes * 1_000_000), texts_of_test_data(DATA)
    sizes = f"{megabytes(machine):.0f} MB in {len(machine):,} files, test data {megabytes(data):.0f} MB"
    print(f"text of this machine {sizes}")
    everything = machine + data
    chinese = [text for text in data if len(text.encode()) > 2 * len(text)]
    passed = [
        compare("DeepSeek, test data", DEEPSEEK, hugging_face(DEEPSEEK), data, 1, 4.0),
        compare("DeepSeek, everything", DEEPSEEK, hugging_face(DEEPSEEK), everything, 10, 10.0),
        compare("SentencePiece BPE, test data", BPE, sentence_piece(BPE), data, 1, 2.0),
        compare("SentencePiece BPE, everything", BPE, sentence_piece(BPE), everything, 10, 2.0),
        # The same library call on both sides: 0.95 is the noise of a shared machine.
        compare("SentencePiece BPE, Chinese", BPE, sentence_piece(BPE), chinese, 1, 0.95),
        compare("SentencePiece unigram, test data", UNIGRAM, sentence_piece(UNIGRAM), data, 1, 0.95),
        compare_tools(everything[::8], 2, 6.0),
    ]
    return 0 if all(passed) else 1


if __name__ == "__main__":
    sys.exit(main())
