"""Benchmarks decontamination: leaks found, clean documents kept, drop rates on real data, and speed.

`python benchmarks/decontamination.py`, or `make bench`. Rates are per CPU second of one process and are compared with
a short script that uses a regular expression and a set of n-grams.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import sys
import tempfile
import time
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from random import Random
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.real_text import texts_of_this_machine
from megatron_dsmath.data.decontamination.benchmark_texts import read_benchmark
from megatron_dsmath.data.decontamination.decontaminate import decontaminate
from megatron_dsmath.data.decontamination.decontamination_report import DecontaminationReport
from megatron_dsmath.quickstart import web_pages
from tests.data.plants import DISGUISES, clean_documents, questions_of

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("DSMATH_TEST_DATA", ROOT.parent / "shared" / "data"))
BENCHMARKS = sorted((DATA / "eval").glob("*.jsonl"))
GENERATED_DOCUMENTS = 10_000
SHOWN = 5  # n-grams per benchmark
UNIT = re.compile(r"\\[a-z]+|[\u4e00-\u9fff]|[^\W\d_\u4e00-\u9fff]+|\d+")


def leaks_are_found(folder: Path) -> bool:
    """Whether every question of every benchmark is found in every disguise."""
    questions = questions_of(BENCHMARKS)
    found = {}
    for name, disguise in DISGUISES.items():
        corpus = write_corpus(folder / "leaks.jsonl", map(disguise, questions))
        found[name] = decontaminate([corpus], BENCHMARKS, folder / "out").dropped
    for name, count in found.items():
        print(f"leaks {name}: {count:,} of {len(questions):,} found")
    return set(found.values()) == {len(questions)}


def clean_documents_are_kept(folder: Path) -> bool:
    """Whether all generated documents are kept."""
    corpus = write_corpus(folder / "clean.jsonl", clean_documents(GENERATED_DOCUMENTS))
    report = decontaminate([corpus], BENCHMARKS, folder / "out")
    print(f"clean documents: {report.dropped:,} of {GENERATED_DOCUMENTS:,} dropped", flush=True)
    return report.dropped == 0


def show_drop_rates(folder: Path) -> None:
    """Print the drop rates of two public training sets and of generated mathematics."""
    gsm8k = decontaminate(
        [DATA / "sft" / "gsm8k_train.jsonl"], BENCHMARKS, folder / "out", field=["question", "answer"]
    )
    show("GSM8K's training rows", gsm8k)
    rows = [json.loads(line) for line in (DATA / "sft" / "tal_scq5k_cn_train.jsonl").open()]
    corpus = write_corpus(folder / "tal.jsonl", map(text_of_tal_row, rows))
    show("TAL-SCQ5K's training rows", decontaminate([corpus], BENCHMARKS, folder / "out"))
    corpus = write_corpus(folder / "pages.jsonl", islice(web_pages.generate_pages(Random(0)), GENERATED_DOCUMENTS))
    show("The quickstart's mathematics", decontaminate([corpus], BENCHMARKS, folder / "out"))


def text_of_tal_row(row: dict[str, Any]) -> str:
    """Return the question, options and worked analysis as one text."""
    options = [option["content"] for group in row["answer_option_list"] for option in group]
    return "\n".join([row["problem"], *options, *row["answer_analysis"]])


def show(name: str, report: DecontaminationReport) -> None:
    """Print the counts of each benchmark and its most frequent n-grams."""
    print(
        f"{name}: {report.dropped:,} of {report.kept + report.dropped:,} dropped,"
        f" {report.dropped / (report.kept + report.dropped):.2%}"
    )
    for benchmark in report.benchmarks:
        if not benchmark.documents:
            continue
        lengths = ", ".join(
            f"{count} of {units}" for units, count in benchmark.documents_by_longest_passage_units.items() if count
        )
        print(f"  {benchmark.file.name}: {benchmark.documents} documents, {benchmark.drop_rate:.2%},", end=" ")
        print(f"longest passage in units: {lengths}")
        for frequent in (*benchmark.frequent_ngrams[:SHOWN], *benchmark.frequent_short_texts[:SHOWN]):
            match = frequent.match
            print(f"    {frequent.documents} x {match.field} row {match.row}: {match.text}")
    sys.stdout.flush()


def show_rates(folder: Path, megabytes: int) -> None:
    """Print MB per second of one process without the start, and the speed-up of two workers."""
    nothing = write_corpus(folder / "nothing.jsonl", ["nothing"])
    start_seconds = cpu_seconds_of(nothing, folder)
    print(
        f"benchmarks, {sum(path.stat().st_size for path in BENCHMARKS) / 1e6:.1f} MB: read in {start_seconds:.2f} CPU s"
    )
    ngrams = ngrams_of_script()
    for name, texts in {
        "text and code of this machine": texts_of_this_machine(megabytes * 1_000_000),
        "English web pages": texts_of("pretrain/c4_en_sample.jsonl") * 20,
        "LaTeX of arXiv": texts_of("pretrain/arxiv_sample.jsonl") * 12,
        "Chinese Wikipedia": texts_of("pretrain/zh_wiki_cmrc2018.jsonl") * 10,
    }.items():
        corpus = write_corpus(folder / "speed.jsonl", texts)
        size = sum(len(text.encode()) for text in texts) / 1e6
        ours = size / min(cpu_seconds_of(corpus, folder) - start_seconds for _ in range(3))
        few = texts[::10]
        theirs = sum(len(text.encode()) for text in few) / 1e6 / cpu_seconds_of_script(few, ngrams)
        print(f"{name}, {size:.0f} MB: {ours:.1f} MB/s per core, script {theirs:.1f} MB/s, ratio {ours / theirs:.1f}")
        if name.startswith("text and code"):
            show_workers(corpus, nothing, folder)
    sys.stdout.flush()


def show_workers(corpus: Path, nothing: Path, folder: Path) -> None:
    """Print wall time (use an idle machine) and CPU time by process, both minus those of an empty corpus."""
    size = corpus.stat().st_size / 1e6
    rates = {}
    for workers in (1, 2):
        started, ended = (min(_run(path, folder, workers) for _ in range(3)) for path in (nothing, corpus))
        wall_seconds, ours, theirs = (end - start for start, end in zip(started, ended, strict=True))
        rates[workers] = size / wall_seconds
        print(f"  workers {workers}: {rates[workers]:.1f} MB/s in wall time; CPU seconds:", end=" ")
        print(f"{ours:.2f} in the parent, {theirs:.2f} in workers")
    print(f"  two against one: {rates[2] / rates[1]:.2f} times; load {os.getloadavg()[0]:.2f}")


def _run(corpus: Path, folder: Path, workers: int) -> tuple[float, float, float]:
    """Return wall seconds, CPU seconds of this process, and CPU seconds of its children."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started, cpu_started = time.monotonic(), time.process_time()
    decontaminate([corpus], BENCHMARKS, folder / "out", workers=workers)
    wall_seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    children = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall_seconds, time.process_time() - cpu_started, children


def cpu_seconds_of(corpus: Path, folder: Path) -> float:
    """Return the CPU seconds of one call in one process."""
    started = time.process_time()
    decontaminate([corpus], BENCHMARKS, folder / "out")
    return time.process_time() - started


def ngrams_of_script() -> set[tuple[str, ...]]:
    """Return all 10-grams of the benchmarks as tuples."""
    units = (units_of_script(text.text) for path in BENCHMARKS for text in read_benchmark(path).texts)
    return {tuple(text[first : first + 10]) for text in units for first in range(len(text) - 9)}


def cpu_seconds_of_script(texts: Sequence[str], ngrams: set[tuple[str, ...]]) -> float:
    """Return the CPU seconds of the script for texts in memory."""
    started = time.process_time()
    for text in texts:
        units = units_of_script(text)
        any(tuple(units[first : first + 10]) in ngrams for first in range(len(units) - 9))
    return time.process_time() - started


def units_of_script(text: str) -> list[str]:
    """Split into words, numbers, LaTeX commands and Han characters, approximately."""
    return UNIT.findall(unicodedata.normalize("NFKC", text).lower())


def texts_of(name: str) -> list[str]:
    """Return the documents of a file."""
    return [json.loads(line)["text"] for line in (DATA / name).open()]


def write_corpus(path: Path, texts: Iterable[str]) -> Path:
    """Write one text per line."""
    with path.open("w") as file:
        file.writelines(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts)
    return path


def main() -> int:
    """Return 0 if all leaks are found and all clean documents kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=int, default=100, help="size of the text read from this machine")
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"no test data at {DATA}: set DSMATH_TEST_DATA")
        return 1
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        holds = [leaks_are_found(folder), clean_documents_are_kept(folder)]
        show_drop_rates(folder)
        show_rates(folder, options.megabytes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"largest memory of this process: {peak:,.0f} MiB")
    return 0 if all(holds) else 1


if __name__ == "__main__":
    sys.exit(main())
