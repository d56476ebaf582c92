"""Checks a run's ledger against its plan and its .bin files; computes every hash again from the tokens on disk."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np

from megatron_dsmath.config import load
from megatron_dsmath.data.audit.ledger import Ledger, LedgerRow, differing_sample, sample_hashes, step_hash
from megatron_dsmath.data.audit.ledger_totals import GroupUsage, LedgerTotals, count_groups, count_ledger
from megatron_dsmath.data.audit.run_batches import RunBatches, open_recorded_batches
from megatron_dsmath.data.indexed.inspection import verify
from megatron_dsmath.data.mixture.permutation import IntArray, Words
from megatron_dsmath.data.sft.conversation_batches import PackedBatches
from megatron_dsmath.errors import DataError, DsmathError, IndexedDatasetError

SAMPLES_AT_ONCE = 256
MOST_FAULTS = 20
MOST_SAMPLES = 8  # listed per file
SECONDS_BETWEEN_LINES = 10.0
NO_CHANGED_FILE = "no file differs from its sidecar: the run read wrong data"


@dataclass(frozen=True)
class Audit:
    """The totals of the ledger and the first faults. Without faults, the run read what its plan says.

    `groups` is the usage of a run on conversations; that of a mixture is in `totals`.
    """

    steps: int
    versions: int
    totals: LedgerTotals
    groups: tuple[GroupUsage, ...]
    faults: tuple[DsmathError, ...]

    @property
    def holds(self) -> bool:
        """Whether every check passed."""
        return not self.faults

    def facts(self) -> dict[str, Any]:
        """Everything except the tables and the faults."""
        return {
            "steps": self.steps,
            "versions": self.versions,
            "skipped_samples": self.totals.skipped_samples,
            "repeated_samples": self.totals.repeated_samples,
            "missing_samples": self.totals.missing_samples,
            "holds": self.holds,
        }


def audit(run: Path, first_step: int = 1, last_step: int | None = None) -> Audit:
    """Check the order of all steps of a run, and the tokens of steps `first_step` to `last_step`.

    Stops after MOST_FAULTS wrong steps and prints progress to stderr. Raises ConfigError if `run` is not the directory
    of a run, and DataError if its ledger is missing or damaged. A missing or changed data file is a fault.
    """
    vocabulary_size = load(run / "run.yaml").model.vocabulary_size
    ledger = Ledger(run / "ledger")
    plan, rows = ledger.read_plan(), ledger.read_rows()
    totals = count_ledger(plan, rows)
    selected = [row for row in rows if first_step <= row.step <= (last_step or row.step)]
    groups: tuple[GroupUsage, ...] = ()
    try:
        batches = open_recorded_batches(plan, None, vocabulary_size)
        if isinstance(batches, PackedBatches):
            groups = count_groups(batches, rows)
        faults: list[DsmathError] = list(islice(_wrong_steps(batches, selected), MOST_FAULTS))
    except DsmathError as error:  # a file cannot be opened
        faults = [error]
    return Audit(len(rows), len(plan.versions), totals, groups, (*totals.faults[:MOST_FAULTS], *faults))


def _wrong_steps(batches: RunBatches, rows: Sequence[LedgerRow]) -> Iterator[DsmathError]:
    """Yield one fault per row whose hash differs from that of its samples on disk."""
    is_unchanged = cache(_is_unchanged)
    for row in _with_progress(rows):
        samples = np.arange(row.first_sample, row.end_sample)
        try:
            hashes = _hashes(batches, samples, samples)
        except IndexedDatasetError as error:  # a token beyond the vocabulary, with file and document
            yield error
            continue
        if step_hash(hashes, samples) != row.hash:
            yield _difference(batches, row, hashes, samples, is_unchanged)


def _hashes(batches: RunBatches, read: IntArray, samples: IntArray) -> Words:
    """Return the hashes of the tokens of samples `read` with the numbers `samples`, both int64 [n]: uint64 [n]."""
    blocks = []
    for first in range(0, len(read), SAMPLES_AT_ONCE):
        part = slice(first, first + SAMPLES_AT_ONCE)
        blocks.append(sample_hashes(batches.tokens(read[part]), samples[part]))
    return np.concatenate(blocks)


def _difference(
    batches: RunBatches, row: LedgerRow, hashes: Words, samples: IntArray, is_unchanged: Callable[[Path], bool]
) -> DataError:
    """Return the most precise fault that explains the hash: one sample, the previous step, or several samples.

    The two numbers of the hash cannot identify two or more samples. The changed files then limit which samples they
    can be.
    """
    index = differing_sample(row.hash, hashes, samples)
    if index is not None:
        return DataError(
            "a sample on disk differs from what was trained on",
            where=f"step {row.step}, sample {samples[index]:,}: {_location(batches, int(samples[index]))}",
            found=_changed_files(batches, samples[[index]], is_unchanged) or f"other tokens, and {NO_CHANGED_FILE}",
            expected="the tokens that entered the forward pass",
            fix="restore the original file",
        )
    before = samples - row.samples
    version = batches.plan.versions[batches.plan.version_at(row.first_sample)]
    if before[0] >= version.first_sample and step_hash(_hashes(batches, before, samples), samples) == row.hash:
        return DataError(
            "a step was trained on the samples of the previous step",
            where=f"step {row.step}",
            found=f"samples {before[0]:,} to {before[-1]:,}",
            expected=f"samples {samples[0]:,} to {samples[-1]:,}",
        )
    return DataError(
        "two or more samples on disk differ from what was trained on",
        where=f"step {row.step}, samples {samples[0]:,} to {samples[-1]:,}",
        found=_changed_files(batches, samples, is_unchanged) or f"hash {row.total}, and {NO_CHANGED_FILE}",
        expected=f"hash {step_hash(hashes, samples).total:016x}",
        fix="restore the original file",
    )


def _location(batches: RunBatches, sample: int) -> str:
    """Describe where a sample is on disk: "corpus math: data/math_0.bin documents 3 to 5"."""
    passages = list(batches.read_passages(sample))
    if isinstance(batches, PackedBatches):
        examples = ", ".join(str(passage.document) for _, passage in passages)
        return f"conversations: {batches.examples.prefix}.bin examples {examples}"
    files = []
    for prefix, part in groupby((passage for _, passage in passages), key=lambda passage: passage.prefix):
        first, *others = [passage.document for passage in part]
        documents = f"documents {first:,} to {others[-1]:,}" if others else f"document {first:,}"
        files.append(f"{prefix}.bin {documents}")
    return f"corpus {passages[0][0]}: {', '.join(files)}"


def _changed_files(batches: RunBatches, samples: IntArray, is_unchanged: Callable[[Path], bool]) -> str:
    """List the files of these samples that differ from their sidecars."""
    changed: dict[str, list[int]] = {}
    for sample in samples.tolist():
        for name, prefix in dict.fromkeys((name, passage.prefix) for name, passage in batches.read_passages(sample)):
            if not is_unchanged(prefix):
                changed.setdefault(f"{prefix}.bin (corpus {name}) was changed", []).append(sample)
    return "; ".join(f"{file}, which contains {_listed(contained)}" for file, contained in changed.items())


def _is_unchanged(prefix: Path) -> bool:
    print(f"comparing {prefix}.bin with its sidecar", file=sys.stderr, flush=True)
    return verify(prefix).holds


def _listed(samples: Sequence[int]) -> str:
    """ "sample 3", or "samples 3, 4 and 5 more"."""
    numbers = ", ".join(f"{sample:,}" for sample in samples[:MOST_SAMPLES])
    more = f" and {len(samples) - MOST_SAMPLES:,} more" if len(samples) > MOST_SAMPLES else ""
    return f"sample{'s' if len(samples) > 1 else ''} {numbers}{more}"


def _with_progress(rows: Sequence[LedgerRow]) -> Iterator[LedgerRow]:
    """Yield the rows and print their progress to stderr from time to time."""
    started = last_shown = time.monotonic()
    for done, row in enumerate(rows, 1):
        yield row
        now = time.monotonic()
        if now - last_shown >= SECONDS_BETWEEN_LINES:
            last_shown = now
            left_seconds = (now - started) * (len(rows) - done) / done
            share, step = done / len(rows), row.step
            print(f"{share:6.1%}  step {step:,}  about {left_seconds:,.0f} s left", file=sys.stderr, flush=True)
