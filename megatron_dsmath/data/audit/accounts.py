"""The rows of a ledger against the plan, in numbers alone: is every sample there once, and how much was read?"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_dsmath.data.audit.ledger import LedgerRow
from megatron_dsmath.data.mixture.mixture_plan import MixturePlan
from megatron_dsmath.data.mixture.permutation import IntArray
from megatron_dsmath.data.mixture.run_plan import RunPlan
from megatron_dsmath.data.sft.conversation_batches import GROUPS, PackedBatches
from megatron_dsmath.data.sft.packing import PackedExamples
from megatron_dsmath.errors import DataError


@dataclass(frozen=True)
class GroupAccount:
    """What the rows read of a group, and its share of the targets, beside that of a whole epoch.

    `examples`: those that begin in a sequence that was read, as often as they were. `passes`: over those trained on.
    """

    group: str
    name: str
    examples: int
    target_tokens: int
    share: float
    planned_share: float
    passes: float


def account_groups(batches: PackedBatches, rows: Sequence[LedgerRow]) -> tuple[GroupAccount, ...]:
    """Count what the rows read of each group, in the order of `PackedBatches.names`."""
    packed, examples = batches.training, batches.examples
    times, targets = np.zeros(len(examples), np.int64), np.zeros(len(examples), np.int64)
    for row in rows:
        for read, begins, learned in _pieces(packed, row):
            np.add.at(times, read, begins)
            np.add.at(targets, read, learned)
    trained_on = np.zeros(len(examples), np.int64)
    trained_on[packed.numbers] = 1
    passes_per_epoch = np.array(examples.facts["passes_per_epoch"])[examples.column("source")]
    planned = trained_on * passes_per_epoch * examples.column("target_tokens")
    return tuple(
        GroupAccount(
            group,
            name,
            examples=int(times[of_group].sum()),
            target_tokens=int(targets[of_group].sum()),
            share=float(targets[of_group].sum() / max(1, targets.sum())),
            planned_share=float(planned[of_group].sum() / planned.sum()),
            passes=float(times[of_group].sum() / max(1, trained_on[of_group].sum())),
        )
        for group in GROUPS
        for place, name in enumerate(examples.names(group))
        for of_group in [examples.column(group) == place]
    )


def _pieces(packed: PackedExamples, row: LedgerRow) -> Iterator[tuple[IntArray, IntArray, IntArray]]:
    """Of the sequences of a row, epoch by epoch: examples, whether each begins there, its targets there.

    Each int64 [pieces].
    """
    sample = row.first_sample
    while sample < row.end_sample:
        epoch, first = packed.locate(sample)
        packing = packed.plan(epoch)
        end = min(packing.sequence_count, first + row.end_sample - sample)
        pieces = slice(*packing.bounds[[first, end]].tolist())
        read, first_tokens = packing.examples[pieces], packing.first_tokens[pieces]
        counts = packing.token_counts[pieces]
        learned = packed.examples.column("target_tokens")[read].astype(np.int64)
        for place in np.flatnonzero(counts < packed.examples.lengths[read]).tolist():  # an example that was split
            learned[place] = _targets(packed, int(read[place]), int(first_tokens[place]), int(counts[place]))
        yield read, (first_tokens == 0).astype(np.int64), learned
        sample += end - first


def _targets(packed: PackedExamples, example: int, first: int, count: int) -> int:
    """The targets of a part of an example: its tokens but the first, and the one behind it, if there is one."""
    count = min(count + 1, int(packed.examples.lengths[example]) - first)
    return int(packed.examples.read(example, first, count)[1][1:].sum())


@dataclass(frozen=True)
class CorpusAccount:
    """What the rows read of a corpus, and how far it was at most from its weight at the end of any step.

    The deviation counts from the first sample of each version; `planned_share` is that of all its tokens.
    """

    name: str
    tokens: int
    share: float
    planned_share: float
    largest_deviation_samples: float
    epochs: float


@dataclass(frozen=True)
class Accounts:
    """All corpora (none of a run on conversations), and what is wrong with the order of the rows."""

    corpora: tuple[CorpusAccount, ...]
    skipped_samples: int
    repeated_samples: int
    missing_samples: int
    faults: tuple[DataError, ...]


def account(plan: RunPlan, rows: Sequence[LedgerRow]) -> Accounts:
    """Count what the rows say; there is no fault when each step follows the one before, as the plan has it."""
    breaks = list(_breaks(plan, rows))
    end = rows[-1].end_sample if rows else 0
    return Accounts(
        corpora=tuple(_corpora(plan, rows, end)) if isinstance(plan, MixturePlan) else (),
        skipped_samples=sum(version.skipped_samples for version in plan.versions if version.first_sample <= end),
        repeated_samples=-sum(min(missing, 0) for missing, _ in breaks),
        missing_samples=sum(max(missing, 0) for missing, _ in breaks),
        faults=tuple(fault for _, fault in breaks),
    )


def _breaks(plan: RunPlan, rows: Sequence[LedgerRow]) -> Iterator[tuple[int, DataError]]:
    """What is wrong with the order of the rows, and how many samples are missing there (negative: repeated)."""
    next_step, next_sample = 1, 0
    for row in rows:
        expected = plan.after_skips(next_sample)
        if row.step != next_step:
            what = "a step stands twice in the ledger" if row.step < next_step else "a step is missing in the ledger"
            yield 0, _fault(what, next_step, f"step {row.step}", f"step {next_step}")
        if row.first_sample != expected:
            what = "samples were trained on again" if row.first_sample < expected else "samples were passed over"
            yield (
                row.first_sample - expected,
                _fault(what, row.step, f"sample {row.first_sample:,}", f"sample {expected:,}, after the step before"),
            )
        version = plan.version_at(row.first_sample)
        if row.plan_version != version:
            yield 0, _fault("a step names another version of the plan", row.step, row.plan_version, version)
        if plan.version_at(row.end_sample - 1) != version:
            where_it_ends = f"before sample {plan.versions[version + 1].first_sample:,}"
            yield 0, _fault("a step runs into the next version", row.step, f"{row.end_sample - 1:,}", where_it_ends)
        next_step, next_sample = row.step + 1, row.end_sample


def _fault(what: str, step: int, found: object, expected: object) -> DataError:
    return DataError(what, where=f"step {step}", found=found, expected=expected)


def _corpora(plan: MixturePlan, rows: Sequence[LedgerRow], end: int) -> Iterator[CorpusAccount]:
    tokens, planned = dict.fromkeys(plan.names, 0), dict.fromkeys(plan.names, 0.0)
    largest = dict.fromkeys(plan.names, 0.0)
    bounds = np.array([(row.first_sample, row.end_sample) for row in rows], np.int64).reshape(-1, 2)
    places = np.array([plan.version_at(row.first_sample) for row in rows])
    for place in np.unique(places).tolist():
        version = plan.versions[place]
        firsts, ends = bounds[places == place].T
        counts = version.blend.counts(ends - version.first_sample) - version.blend.counts(firsts - version.first_sample)
        read, samples = counts.cumsum(axis=0), (ends - firsts).cumsum()
        for corpus, (name, share) in enumerate(zip(version.blend.names, map(float, version.blend.shares), strict=True)):
            tokens[name] += int(read[-1, corpus]) * version.sequence_length
            planned[name] += float(samples[-1]) * share * version.sequence_length
            largest[name] = max(largest[name], float(np.abs(read[:, corpus] - share * samples).max()))
    all_tokens = max(1, sum(tokens.values()))
    for total in plan.totals(end):
        yield CorpusAccount(
            total.name,
            tokens=tokens[total.name],
            share=tokens[total.name] / all_tokens,
            planned_share=planned[total.name] / all_tokens,
            largest_deviation_samples=largest[total.name],
            epochs=total.epochs,
        )
