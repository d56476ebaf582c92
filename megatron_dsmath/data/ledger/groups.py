"""The rows of a ledger of conversations in numbers: what was learned of each kind, language and source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from megatron_dsmath.data.conversations.batches import GROUPS, PackedBatches
from megatron_dsmath.data.conversations.packed import PackedExamples
from megatron_dsmath.data.ledger.ledger import LedgerRow
from megatron_dsmath.data.mixture.permutation import IntArray


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
