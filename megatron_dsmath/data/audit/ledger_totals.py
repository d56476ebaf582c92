"""Checks the rows of a ledger against the plan without reading data, and counts what the run read."""

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
class CorpusUsage:
    """What the rows read of a corpus.

    `largest_deviation_samples` is the largest deviation from the weight after any step, counted from the first sample
    of each version. `share` and `planned_share` are of all tokens.
    """

    name: str
    tokens: int
    share: float
    planned_share: float
    largest_deviation_samples: float
    epochs: float


@dataclass(frozen=True)
class LedgerTotals:
    """The usage of each corpus (empty for a run on conversations), and faults in the order of the rows."""

    corpora: tuple[CorpusUsage, ...]
    skipped_samples: int
    repeated_samples: int
    missing_samples: int
    faults: tuple[DataError, ...]


def count_ledger(plan: RunPlan, rows: Sequence[LedgerRow]) -> LedgerTotals:
    """Count what the rows read. Without faults, every step follows the previous one as planned."""
    faults = list(_order_faults(plan, rows))
    end = rows[-1].end_sample if rows else 0
    return LedgerTotals(
        corpora=tuple(_corpus_usage(plan, rows, end)) if isinstance(plan, MixturePlan) else (),
        skipped_samples=sum(version.skipped_samples for version in plan.versions if version.first_sample <= end),
        repeated_samples=-sum(min(missing, 0) for missing, _ in faults),
        missing_samples=sum(max(missing, 0) for missing, _ in faults),
        faults=tuple(fault for _, fault in faults),
    )


def _order_faults(plan: RunPlan, rows: Sequence[LedgerRow]) -> Iterator[tuple[int, DataError]]:
    """Yield each fault in the order of the rows with the number of missing samples (negative: repeated)."""
    next_step, next_sample = 1, 0
    for row in rows:
        expected = plan.after_skips(next_sample)
        if row.step != next_step:
            what = "a step is in the ledger twice" if row.step < next_step else "a step is missing in the ledger"
            yield 0, _fault(what, next_step, f"step {row.step}", f"step {next_step}")
        if row.first_sample != expected:
            what = "samples were trained on again" if row.first_sample < expected else "samples were skipped"
            yield (
                row.first_sample - expected,
                _fault(what, row.step, f"sample {row.first_sample:,}", f"sample {expected:,}, after the previous step"),
            )
        version = plan.version_at(row.first_sample)
        if row.plan_version != version:
            yield 0, _fault("a step has another version of the plan", row.step, row.plan_version, version)
        if plan.version_at(row.end_sample - 1) != version:
            end_of_version = f"before sample {plan.versions[version + 1].first_sample:,}"
            yield 0, _fault("a step extends into the next version", row.step, f"{row.end_sample - 1:,}", end_of_version)
        next_step, next_sample = row.step + 1, row.end_sample


def _fault(what: str, step: int, found: object, expected: object) -> DataError:
    return DataError(what, where=f"step {step}", found=found, expected=expected)


def _corpus_usage(plan: MixturePlan, rows: Sequence[LedgerRow], end: int) -> Iterator[CorpusUsage]:
    tokens, planned = dict.fromkeys(plan.names, 0), dict.fromkeys(plan.names, 0.0)
    largest = dict.fromkeys(plan.names, 0.0)
    bounds = np.array([(row.first_sample, row.end_sample) for row in rows], np.int64).reshape(-1, 2)
    indices = np.array([plan.version_at(row.first_sample) for row in rows])
    for index in np.unique(indices).tolist():
        version = plan.versions[index]
        firsts, ends = bounds[indices == index].T
        counts = version.blend.counts(ends - version.first_sample) - version.blend.counts(firsts - version.first_sample)
        read, samples = counts.cumsum(axis=0), (ends - firsts).cumsum()
        for corpus, (name, share) in enumerate(zip(version.blend.names, map(float, version.blend.shares), strict=True)):
            tokens[name] += int(read[-1, corpus]) * version.sequence_length
            planned[name] += float(samples[-1]) * share * version.sequence_length
            largest[name] = max(largest[name], float(np.abs(read[:, corpus] - share * samples).max()))
    all_tokens = max(1, sum(tokens.values()))
    for total in plan.totals(end):
        yield CorpusUsage(
            total.name,
            tokens=tokens[total.name],
            share=tokens[total.name] / all_tokens,
            planned_share=planned[total.name] / all_tokens,
            largest_deviation_samples=largest[total.name],
            epochs=total.epochs,
        )


@dataclass(frozen=True)
class GroupUsage:
    """What the rows read of a group of conversations.

    `examples` counts each reading of an example's beginning; `passes` divides it by the number of training examples.
    `share` is that of the targets, `planned_share` the same for a whole epoch.
    """

    group: str
    name: str
    examples: int
    target_tokens: int
    share: float
    planned_share: float
    passes: float


def count_groups(batches: PackedBatches, rows: Sequence[LedgerRow]) -> tuple[GroupUsage, ...]:
    """Count what the rows read of each group, in the order of `PackedBatches.group_names`."""
    packed, examples = batches.training, batches.examples
    times, targets = np.zeros(len(examples), np.int64), np.zeros(len(examples), np.int64)
    for row in rows:
        for read, begins, learned in _read_examples(packed, row):
            np.add.at(times, read, begins)
            np.add.at(targets, read, learned)
    trained_on = np.zeros(len(examples), np.int64)
    trained_on[packed.numbers] = 1
    passes_per_epoch = np.array(examples.facts["passes_per_epoch"])[examples.column("source")]
    planned = trained_on * passes_per_epoch * examples.column("target_tokens")
    return tuple(
        GroupUsage(
            group,
            name,
            examples=int(times[of_group].sum()),
            target_tokens=int(targets[of_group].sum()),
            share=float(targets[of_group].sum() / max(1, targets.sum())),
            planned_share=float(planned[of_group].sum() / planned.sum()),
            passes=float(times[of_group].sum() / max(1, trained_on[of_group].sum())),
        )
        for group in GROUPS
        for index, name in enumerate(examples.names(group))
        for of_group in [examples.column(group) == index]
    )


def _read_examples(packed: PackedExamples, row: LedgerRow) -> Iterator[tuple[IntArray, IntArray, IntArray]]:
    """Yield, per epoch of a row, the packed examples, whether each begins there, and its targets: int64 [n] each."""
    sample = row.first_sample
    while sample < row.end_sample:
        epoch, first = packed.locate(sample)
        packing = packed.plan(epoch)
        end = min(packing.sequence_count, first + row.end_sample - sample)
        part = slice(*packing.bounds[[first, end]].tolist())
        read, first_tokens = packing.examples[part], packing.first_tokens[part]
        counts = packing.token_counts[part]
        learned = packed.examples.column("target_tokens")[read].astype(np.int64)
        for index in np.flatnonzero(counts < packed.examples.lengths[read]).tolist():  # split examples
            learned[index] = _targets(packed, int(read[index]), int(first_tokens[index]), int(counts[index]))
        yield read, (first_tokens == 0).astype(np.int64), learned
        sample += end - first


def _targets(packed: PackedExamples, example: int, first: int, count: int) -> int:
    """Count the targets of a part of an example: its tokens except the first, and the next token if any."""
    count = min(count + 1, int(packed.examples.lengths[example]) - first)
    return int(packed.examples.read(example, first, count)[1][1:].sum())
