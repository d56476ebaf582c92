from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest

from megatron_dsmath.data.audit.accounts import account_groups
from megatron_dsmath.data.audit.ledger import LedgerRow
from megatron_dsmath.data.mixture.microbatch import PADDING
from megatron_dsmath.data.sft.conversation_batches import PackedBatches
from tests.data.sft.sets import Policy, open_set, small_set

NO_HASH = "0" * 16


def row(step: int, first_sample: int, samples: int) -> LedgerRow:
    return LedgerRow(
        step=step, plan_version=0, first_sample=first_sample, samples=samples, total=NO_HASH, moment=NO_HASH
    )


def targets_by_reading(batches: PackedBatches, samples: Iterable[int]) -> Counter[str]:
    """Each target of each sequence, counted where a loss would be: by its own names."""
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
def test_what_was_learned_of_each_group_is_what_the_sequences_hold(tmp_path: Path, packing: Policy) -> None:
    """Over an epoch's end; with "split", examples are cut between two of the sequences, and between two epochs' too."""
    examples = small_set(tmp_path, 60, passes=(1.0, 1.5))
    batches = open_set(examples, 256, seed=3, held_out_share=0.1, packing=packing)
    epoch = batches.training.plan(0).sequence_count
    rows = [row(1, 0, 5), row(2, 5, 4), row(3, epoch - 2, 5)]
    samples = [*range(9), *range(epoch - 2, epoch + 3)]
    accounts = account_groups(batches, rows)
    expected = targets_by_reading(batches, samples)
    assert {f"{one.group}/{one.name}": one.target_tokens for one in accounts} == {
        name: expected[name] for name in batches.group_names
    }
    for group in ("kind", "language", "source"):
        parts = [one for one in accounts if one.group == group]
        assert sum(one.share for one in parts) == pytest.approx(1, abs=1e-12)
        assert sum(one.planned_share for one in parts) == pytest.approx(1, abs=1e-12)


def test_a_whole_epoch_is_as_planned(tmp_path: Path) -> None:
    """Twice the second source, of 20 examples with 2 held out; once the first, of 60 with 6: its share is planned."""
    batches = open_set(small_set(tmp_path, 60, passes=(1.0, 2.0)), 256, seed=3, held_out_share=0.1)
    epoch = batches.training.plan(0).sequence_count
    accounts = account_groups(batches, [row(1, 0, epoch)])
    for one in accounts:
        assert one.share == pytest.approx(one.planned_share, abs=1e-12)
    sources = {one.name: (one.examples, one.passes) for one in accounts if one.group == "source"}
    assert sources == {"first": (54, 1.0), "second": (36, 2.0)}


def test_nothing_read_is_nothing_learned(tmp_path: Path) -> None:
    accounts = account_groups(open_set(small_set(tmp_path, 6), 256, seed=3), [])
    assert {(one.examples, one.target_tokens, one.share, one.passes) for one in accounts} == {(0, 0, 0.0, 0.0)}
