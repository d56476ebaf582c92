from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from megatron_dsmath.data.audit.ledger import LedgerRow
from megatron_dsmath.data.audit.ledger_totals import count_groups
from megatron_dsmath.data.mixture.microbatch import PADDING
from megatron_dsmath.data.sft.conversation_batches import PackedBatches
from tests.data.sft.sets import Policy, open_set, small_set

NO_HASH = "0" * 16


def row(step: int, first_sample: int, samples: int) -> LedgerRow:
    return LedgerRow(
        step=step, plan_version=0, first_sample=first_sample, samples=samples, total=NO_HASH, moment=NO_HASH
    )


def targets_by_reading(batches: PackedBatches, samples: Iterable[int]) -> Counter[str]:
    """Count the targets of each sequence by the groups of their example."""
    counted: Counter[str] = Counter()
    for sample in samples:
        sequence = batches.read(sample)
        for example in sequence.example_of_target()[sequence.loss_mask].tolist():
            assert example != PADDING
            for group in ("kind", "language", "source"):
                names, column = batches.examples.names(group), batches.examples.column(group)
                counted[f"{group}/{names[column[example]]}"] += 1
    return counted


@pytest.mark.parametrize("packing", ["next-fit", "best-fit", "split"])
def test_the_targets_of_each_group_are_those_of_the_sequences(tmp_path: Path, packing: Policy) -> None:
    """Rows cross the end of an epoch; with "split", examples are cut between sequences and between epochs."""
    examples = small_set(tmp_path, 60, passes=(1.0, 1.5))
    batches = open_set(examples, 256, seed=3, held_out_share=0.1, packing=packing)
    epoch = batches.training.plan(0).sequence_count
    rows = [row(1, 0, 5), row(2, 5, 4), row(3, epoch - 2, 5)]
    samples = [*range(9), *range(epoch - 2, epoch + 3)]
    usages = count_groups(batches, rows)
    expected = targets_by_reading(batches, samples)
    assert {f"{one.group}/{one.name}": one.target_tokens for one in usages} == {
        name: expected[name] for name in batches.group_names
    }
    for group in ("kind", "language", "source"):
        parts = [one for one in usages if one.group == group]
        assert sum(one.share for one in parts) == pytest.approx(1, abs=1e-12)
        assert sum(one.planned_share for one in parts) == pytest.approx(1, abs=1e-12)


def test_a_whole_epoch_has_the_planned_shares(tmp_path: Path) -> None:
    """Once the first source, of 60 examples with 6 held out; twice the second, of 20 with 2."""
    batches = open_set(small_set(tmp_path, 60, passes=(1.0, 2.0)), 256, seed=3, held_out_share=0.1)
    epoch = batches.training.plan(0).sequence_count
    usages = count_groups(batches, [row(1, 0, epoch)])
    for one in usages:
        assert one.share == pytest.approx(one.planned_share, abs=1e-12)
    sources = {one.name: (one.examples, one.passes) for one in usages if one.group == "source"}
    assert sources == {"first": (54, 1.0), "second": (36, 2.0)}


def test_no_rows_count_nothing(tmp_path: Path) -> None:
    usages = count_groups(open_set(small_set(tmp_path, 6), 256, seed=3), [])
    assert {(one.examples, one.target_tokens, one.share, one.passes) for one in usages} == {(0, 0, 0.0, 0.0)}
