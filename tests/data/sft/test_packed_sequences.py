from __future__ import annotations

import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from megatron_dsmath.data.mixture.microbatch import PADDING
from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.data.sft.packing import POLICIES, PackedExamples, split_held_out
from megatron_dsmath.errors import DataError
from tests.data.sft.sets import small_set

LENGTH = 256


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return small_set(tmp_path_factory.mktemp("set"))


@pytest.mark.parametrize("policy", ["next-fit", "best-fit"])
def test_a_sequence_is_its_examples_end_to_end_and_padding(examples: Examples, policy: str) -> None:
    packed = PackedExamples(examples, LENGTH, 3, policy)
    for number in range(2 * packed.plan(0).sequence_count):  # into the next epoch
        sequence = packed.read(number)
        read = [examples.read(example) for example in sequence.examples.tolist()]
        tokens = np.concatenate([tokens for tokens, _ in read])
        is_target = np.concatenate([is_target for _, is_target in read])
        padding = LENGTH + 1 - len(tokens)
        assert padding > 0 and sequence.token_count == len(tokens)
        assert sequence.tokens.tolist() == tokens.tolist() + [0] * padding
        assert sequence.loss_mask.tolist() == is_target[1:].tolist() + [False] * padding
        assert sequence.document_starts.tolist() == np.cumsum([0, *(len(tokens) for tokens, _ in read)])[:-1].tolist()
        owners = np.repeat(sequence.examples, examples.lengths[sequence.examples])
        assert sequence.example_of_target().tolist() == owners[1:].tolist() + [PADDING] * padding


def test_every_document_begins_with_the_token_that_begins_a_document(examples: Examples) -> None:
    begin = examples.sidecar["tokenizer"]["begin_of_document"]  # type: ignore[index]
    sequence = PackedExamples(examples, LENGTH, 3, "next-fit").read(0)
    assert set(sequence.tokens[sequence.document_starts].tolist()) == {begin}


def test_examples_that_are_split_keep_all_targets(examples: Examples) -> None:
    """The token after a cut is a target of the sequence before it, which has all that comes before."""
    packed = PackedExamples(examples, 100, 3, "split")
    sequences = [packed.read(number) for number in range(packed.plan(0).sequence_count)]
    assert sum(int(one.loss_mask.sum()) for one in sequences) == examples.column("target_tokens").sum()
    assert [one.token_count for one in sequences[:-1]] == [101 - (one.tokens[100] == 0) for one in sequences[:-1]]
    assert sum(one.token_count == 101 for one in sequences) > len(sequences) // 2
    tokens = np.concatenate([one.tokens[:100] for one in sequences])[: examples.dataset.token_count]
    assert Counter(tokens.tolist()) == Counter(examples.dataset.tokens.tolist())


@pytest.mark.parametrize("policy", POLICIES)
def test_sequences_are_numbered_through_all_epochs(examples: Examples, policy: str) -> None:
    packed = PackedExamples(examples, LENGTH, 3, policy)
    counts = [packed.plan(epoch).sequence_count for epoch in range(4)]
    located = [(epoch, number) for epoch, count in enumerate(counts) for number in range(count)]
    fresh = PackedExamples(examples, LENGTH, 3, policy)
    assert [fresh.locate(number) for number in range(len(located))] == located
    late = PackedExamples(examples, LENGTH, 3, policy)  # resuming asks for a late number first
    last = len(located) - 1
    assert late.read(last).tokens.tolist() == fresh.read(last).tokens.tolist()
    assert late.read(0).tokens.tolist() == fresh.read(0).tokens.tolist()


def test_threads_that_count_the_same_epochs_agree(examples: Examples) -> None:
    """Training draws batches in one thread while another asks for epochs."""
    expected = PackedExamples(examples, LENGTH, 3, "next-fit").locate(9_000)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(5):
            packed = PackedExamples(examples, LENGTH, 3, "next-fit")
            with ThreadPoolExecutor(8) as threads:
                assert list(threads.map(packed.locate, [9_000] * 8)) == [expected] * 8
    finally:
        sys.setswitchinterval(interval)


def test_an_epoch_has_every_example_once(examples: Examples) -> None:
    packed = PackedExamples(examples, LENGTH, 3, "next-fit")
    for epoch in range(3):
        assert sorted(packed.plan(epoch).examples.tolist()) == list(range(len(examples)))


def test_passes_per_epoch_read_the_examples_of_a_source_evenly(tmp_path: Path) -> None:
    examples = small_set(tmp_path, passes=(0.5, 2.5))
    packed = PackedExamples(examples, LENGTH, 3, "next-fit")
    sources = examples.column("source")
    epochs = [Counter(packed.plan(epoch).examples.tolist()) for epoch in range(4)]
    for epoch in epochs:
        drawn = np.bincount(sources[list(epoch.elements())])
        assert drawn.tolist() == [30, 50]  # of 60 and 20 examples
        assert {epoch[number] for number in np.flatnonzero(sources == 1).tolist()} == {2, 3}
    both = epochs[0] + epochs[1]
    assert {both[number] for number in np.flatnonzero(sources == 0).tolist()} == {1}
    assert {both[number] for number in np.flatnonzero(sources == 1).tolist()} == {5}


def test_held_out_examples_are_a_share_of_each_source_and_not_for_training(examples: Examples) -> None:
    training, held_out = split_held_out(examples, 0.1, seed=3)
    assert sorted([*training.tolist(), *held_out.tolist()]) == list(range(len(examples)))
    assert np.bincount(examples.column("source")[held_out]).tolist() == [6, 2]
    packed = PackedExamples(examples, LENGTH, 3, "next-fit", training)
    assert not set(packed.plan(0).examples.tolist()) & set(held_out.tolist())
    assert split_held_out(examples, 0.1, seed=4)[1].tolist() != held_out.tolist()


def test_padding_is_not_the_end_of_an_answer(tmp_path: Path) -> None:
    """A vocabulary may have its end of document at 0; padding is known by its position, and has another token."""
    examples = small_set(tmp_path)
    examples.sidecar["tokenizer"]["end_of_document"] = 0  # type: ignore[index]
    sequence = PackedExamples(examples, LENGTH, 3, "next-fit").read(0)
    assert set(sequence.tokens[sequence.token_count :].tolist()) == {1}


def test_an_example_longer_than_a_sequence_is_refused(examples: Examples) -> None:
    with pytest.raises(DataError, match="longer than a sequence"):
        PackedExamples(examples, 32, 3, "next-fit")


def test_nothing_to_pack_is_refused(examples: Examples) -> None:
    with pytest.raises(DataError, match="no example to pack"):
        PackedExamples(examples, LENGTH, 3, "next-fit", np.empty(0, np.int64))
