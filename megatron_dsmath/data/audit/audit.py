"""A run's ledger against its plan and its .bin files: every hash is computed anew from the tokens on the disk."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from megatron_dsmath.config import load
from megatron_dsmath.data.audit.accounts import Accounts, GroupAccount, account, account_groups
from megatron_dsmath.data.audit.ledger import Ledger, LedgerRow, differing_sample, sample_hashes, step_hash
from megatron_dsmath.data.audit.stored_samples import ConversationsOnDisk, OnDisk, on_disk, place_of
from megatron_dsmath.data.indexed.inspection import verify
from megatron_dsmath.data.mixture.permutation import IntArray, Words
from megatron_dsmath.errors import DataError, DsmathError, IndexedDatasetError

SAMPLES_AT_ONCE = 256
MOST_FAULTS = 20
MOST_SAMPLES = 8  # that are named of a step
SECONDS_BETWEEN_LINES = 10.0
NO_CHANGED_FILE = "no file that differs from its sidecar: the run misread it"


@dataclass(frozen=True)
class Audit:
    """What the ledger says, and the first faults found: the run read what its plan says when there is none.

    `groups`: what a run on conversations learned of each; of a mixture, `accounts` tells the corpora.
    """

    steps: int
    versions: int
    accounts: Accounts
    groups: tuple[GroupAccount, ...]
    faults: tuple[DsmathError, ...]

    @property
    def holds(self) -> bool:
        """Whether every check came out well."""
        return not self.faults

    def facts(self) -> dict[str, Any]:
        """All but the tables and the faults."""
        return {
            "steps": self.steps,
            "versions": self.versions,
            "skipped_samples": self.accounts.skipped_samples,
            "repeated_samples": self.accounts.repeated_samples,
            "missing_samples": self.accounts.missing_samples,
            "holds": self.holds,
        }


def audit(run: Path, first_step: int = 1, last_step: int | None = None) -> Audit:
    """Check the order of all steps of a run, and the tokens of those from `first_step` to `last_step`.

    Stops at MOST_FAULTS wrong steps; progress goes to stderr. Raises ConfigError where `run` is no run's directory,
    DataError where its ledger is missing or damaged; a file that is gone or was changed is a fault.
    """
    vocabulary_size = load(run / "run.yaml").model.vocabulary_size
    ledger = Ledger(run / "ledger")
    plan, rows = ledger.plan(), ledger.rows()
    accounts = account(plan, rows)
    asked = [row for row in rows if first_step <= row.step <= (last_step or row.step)]
    groups: tuple[GroupAccount, ...] = ()
    try:
        disk = on_disk(plan, None, vocabulary_size)
        if isinstance(disk, ConversationsOnDisk):
            groups = account_groups(disk.batches, rows)
        faults: list[DsmathError] = list(islice(_wrong_steps(disk, asked), MOST_FAULTS))
    except DsmathError as error:  # a file that does not open
        faults = [error]
    return Audit(len(rows), len(plan.versions), accounts, groups, (*accounts.faults[:MOST_FAULTS], *faults))


def _wrong_steps(disk: OnDisk, rows: Sequence[LedgerRow]) -> Iterator[DsmathError]:
    """One fault for each of the rows whose hash is not that of its samples."""
    whole: dict[Path, bool] = {}
    for row in _shown(rows):
        samples = np.arange(row.first_sample, row.end_sample)
        try:
            hashes = _hashes(disk, samples, samples)
        except IndexedDatasetError as error:  # a token beyond the vocabulary: it names file and document
            yield error
            continue
        if step_hash(hashes, samples) != row.hash:
            yield _difference(disk, row, hashes, samples, partial(_changed_files, disk, whole))


def _hashes(disk: OnDisk, read: IntArray, samples: IntArray) -> Words:
    """The hashes that the tokens of the samples `read` have as `samples`, both int64 [n]: uint64 [n]."""
    blocks = []
    for first in range(0, len(read), SAMPLES_AT_ONCE):
        part = slice(first, first + SAMPLES_AT_ONCE)
        blocks.append(sample_hashes(disk.tokens(read[part]), samples[part]))
    return np.concatenate(blocks)


def _difference(
    disk: OnDisk, row: LedgerRow, hashes: Words, samples: IntArray, changed_files: Callable[[IntArray], str]
) -> DataError:
    """As exactly as the hash tells: one sample, the step before in place of this one, or several of its samples.

    With two samples or more, the two numbers of the hash are fewer than what is not known, and any two could explain
    them; the files that were changed then say which samples it may be.
    """
    place = differing_sample(row.hash, hashes, samples)
    if place is not None:
        return DataError(
            "a sample is not on the disk as it was trained on",
            where=f"step {row.step}, sample {samples[place]:,}: {place_of(disk, int(samples[place]))}",
            found=changed_files(samples[[place]]) or f"other tokens, and {NO_CHANGED_FILE}",
            expected="the tokens that entered the forward pass",
            fix="put a changed file back as it was",
        )
    before = samples - row.samples
    version = disk.plan.versions[disk.plan.version_at(row.first_sample)]
    if before[0] >= version.first_sample and step_hash(_hashes(disk, before, samples), samples) == row.hash:
        return DataError(
            "a step was trained on the samples of the step before",
            where=f"step {row.step}",
            found=f"samples {before[0]:,} to {before[-1]:,}",
            expected=f"samples {samples[0]:,} to {samples[-1]:,}",
        )
    return DataError(
        "two samples or more are not on the disk as they were trained on",
        where=f"step {row.step}, samples {samples[0]:,} to {samples[-1]:,}",
        found=changed_files(samples) or f"hash {row.total}, and {NO_CHANGED_FILE}",
        expected=f"hash {step_hash(hashes, samples).total:016x}",
        fix="put a changed file back as it was",
    )


def _changed_files(disk: OnDisk, whole: dict[Path, bool], samples: IntArray) -> str:
    """Which of the files that hold these samples are not what their sidecars say; `whole` remembers those compared."""
    changed: dict[str, list[int]] = {}
    for sample in samples.tolist():
        for name, prefix in dict.fromkeys((passage.name, passage.prefix) for passage in disk.passages(sample)):
            if prefix not in whole:
                print(f"comparing {prefix}.bin with its sidecar", file=sys.stderr, flush=True)
                whole[prefix] = verify(prefix).holds
            if not whole[prefix]:
                changed.setdefault(f"{prefix}.bin (corpus {name}) was changed", []).append(sample)
    return "; ".join(f"{file}, which holds {_listed(held)}" for file, held in changed.items())


def _listed(samples: Sequence[int]) -> str:
    """ "sample 3", or as many samples as a person reads."""
    numbers = ", ".join(f"{sample:,}" for sample in samples[:MOST_SAMPLES])
    more = f" and {len(samples) - MOST_SAMPLES:,} more" if len(samples) > MOST_SAMPLES else ""
    return f"sample{'s' if len(samples) > 1 else ''} {numbers}{more}"


def _shown(rows: Sequence[LedgerRow]) -> Iterator[LedgerRow]:
    """The same rows; a line on stderr now and then says how far they have come."""
    started = last_shown = time.monotonic()
    for done, row in enumerate(rows, 1):
        yield row
        now = time.monotonic()
        if now - last_shown >= SECONDS_BETWEEN_LINES:
            last_shown = now
            left_seconds = (now - started) * (len(rows) - done) / done
            share, step = done / len(rows), row.step
            print(f"{share:6.1%}  step {step:,}  about {left_seconds:,.0f} s left", file=sys.stderr, flush=True)
