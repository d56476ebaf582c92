from __future__ import annotations

import numpy as np
import pytest

from megatron_dsmath.data.mixture.microbatch import PADDING, Microbatch
from megatron_dsmath.data.sft.conversation_batches import PackedBatches
from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.errors import LayoutError
from tests.data.sft.sets import open_set, small_set

LENGTH, SEED = 256, 5


def opened(examples: Examples, held_out_share: float) -> PackedBatches:
    return open_set(examples, LENGTH, SEED, held_out_share)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return small_set(tmp_path_factory.mktemp("set"))


@pytest.fixture(scope="module")
def batches(examples: Examples) -> PackedBatches:
    return opened(examples, held_out_share=0.2)


def joined(microbatches: list[Microbatch]) -> list[tuple[int, list[int], list[bool]]]:
    return [
        (int(number), tokens.tolist(), mask.tolist())
        for one in microbatches
        for number, tokens, mask in zip(one.samples, one.tokens, one.loss_mask, strict=True)
    ]


@pytest.mark.parametrize(("microbatch", "ranks"), [(1, 1), (2, 1), (1, 2), (2, 2), (4, 2), (8, 1)])
def test_the_samples_of_a_step_do_not_depend_on_the_layout(batches: PackedBatches, microbatch: int, ranks: int) -> None:
    reference = joined(batches.step_batches(3, 8, 1, 0, 1))
    parts = [batches.step_batches(3, 8, microbatch, rank, ranks) for rank in range(ranks)]
    assert sorted(row for part in parts for row in joined(part)) == sorted(reference)
    assert [number for number, _, _ in reference] == list(range(3, 11))
    neighbours = [int(number) for one in zip(*parts, strict=True) for part in one for number in part.samples]
    assert neighbours == list(range(3, 11))


def test_samples_that_do_not_divide_are_refused(batches: PackedBatches) -> None:
    with pytest.raises(LayoutError, match="do not divide"):
        batches.step_batches(0, 6, 2, 0, 2)


def test_each_target_belongs_to_the_kind_language_and_source_of_its_example(
    batches: PackedBatches, examples: Examples
) -> None:
    assert batches.group_names == (
        "kind/cot", "kind/pot", "kind/tool", "language/en", "language/zh", "source/first", "source/second"
    )  # fmt: skip
    for one in batches.step_batches(0, 8, 2, 0, 1):
        assert one.groups.shape == (2, LENGTH, 3)
        for row, number in enumerate(one.samples.tolist()):
            owners = batches.training.read(number).example_of_target()
            for position, owner in enumerate(owners.tolist()):
                names = [batches.group_names[group] for group in one.groups[row, position].tolist() if group != PADDING]
                columns = ("kind", "language", "source")
                labels = [f"{name}/{examples.names(name)[examples.column(name)[owner]]}" for name in columns]
                assert names == ([] if owner == PADDING else labels)


def test_every_target_belongs_to_an_example(batches: PackedBatches) -> None:
    for one in batches.step_batches(0, 16, 4, 0, 1):
        assert (one.groups[one.loss_mask] != PADDING).all()


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_validation_reads_held_out_sequences_once_on_any_number_of_ranks(batches: PackedBatches, ranks: int) -> None:
    assert batches.validation_set is not None
    count = batches.validation_set.plan(0).sequence_count
    parts = [batches.validation_batches(1000, 2, rank, ranks) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    rows = [row for part in parts for row in joined(part)]
    assert sorted(number for number, _, _ in rows if number != PADDING) == list(range(count))
    assert not any(any(mask) for number, _, mask in rows if number == PADDING)
    trained = {number for epoch in range(2) for number in batches.training.plan(epoch).examples.tolist()}
    assert not trained & set(batches.validation_set.plan(0).examples.tolist())
    assert len(joined(batches.validation_batches(1, 1, 0, 1))) == 1


def test_there_is_no_validation_without_held_out_examples(examples: Examples) -> None:
    assert opened(examples, held_out_share=0.0).validation_batches(8, 2, 0, 1) == []


def test_padding_rows_have_no_group(batches: PackedBatches) -> None:
    parts = (
        batches.validation_batches(1000, 4, 0, 3)
        + batches.validation_batches(1000, 4, 1, 3)
        + batches.validation_batches(1000, 4, 2, 3)
    )
    padded = [one.groups[one.samples == PADDING] for one in parts]
    assert sum(map(len, padded)) > 0
    assert (np.concatenate(padded) == PADDING).all()
