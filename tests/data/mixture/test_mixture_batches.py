from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dsmath.config.sections import DataConfig
from megatron_dsmath.data.mixture.microbatch import PADDING, Microbatch
from megatron_dsmath.data.mixture.mixture_batches import MixtureBatches
from megatron_dsmath.errors import LayoutError
from tests.support.mixtures import corpus, mixture, opened, planned, targets, tokens_of, write_shard

FIRST_TOKEN = {"math": 0, "code": 20_000, "prose": 40_000}  # a token identifies its corpus and its position
TOKENS = {"math": 240, "code": 600, "prose": 1000}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three corpora of documents of 10 tokens; code is two shards."""
    folder = tmp_path_factory.mktemp("data")
    write_shard(folder / "math", range(240))
    write_shard(folder / "code_0", range(20_000, 20_400))
    write_shard(folder / "code_1", range(20_400, 20_600))
    write_shard(folder / "prose", range(40_000, 41_000))
    return folder


def config(data: Path, held_out_share: float = 0.0) -> DataConfig:
    return mixture(
        corpus("math", 56.0, data / "math"),
        corpus("code", 34.0, data / "code_*"),
        corpus("prose", 10.0, data / "prose"),
        held_out_share=held_out_share,
    )


def batches_of(data: Path, held_out_share: float = 0.0) -> MixtureBatches:
    return opened(planned(config(data, held_out_share)))


def in_order(ranks: Sequence[Sequence[Microbatch]]) -> list[tuple[int, int, list[int], list[int]]]:
    """The rows of all ranks in the order of the samples: sample, corpus, tokens, document starts."""
    return [
        (int(sample), int(corpus[0, 0]), tokens.tolist(), starts.tolist())
        for microbatch in chain.from_iterable(zip(*ranks, strict=True))
        for tokens, _, corpus, starts, sample in zip(*microbatch, strict=True)
    ]


def test_a_row_is_a_whole_sample_of_its_corpus(data: Path) -> None:
    batches = batches_of(data)
    drawn = batches.mixture(0)
    draw = drawn.version.blend.locate(np.arange(100, 124))
    expected = [
        (100 + row, place, *(part.tolist() for part in drawn.training[place].read(number)))
        for row, (place, number) in enumerate(zip(draw.corpus.tolist(), draw.number.tolist(), strict=True))
    ]
    assert in_order([batches.step_batches(100, 24, 2, 0, 1)]) == expected
    for _, place, tokens, _ in expected:
        name = batches.group_names[place]
        places = np.array(tokens) - FIRST_TOKEN[name]
        assert places.tolist() == [(places[0] + step) % TOKENS[name] for step in range(5)]


def test_a_microbatch_has_the_documented_shapes(data: Path) -> None:
    microbatches = batches_of(data).step_batches(0, 12, 3, 1, 2)
    assert len(microbatches) == 2
    for tokens, loss_mask, groups, document_starts, samples in microbatches:
        assert (str(tokens.dtype), tokens.shape) == ("int64", (3, 5))
        assert (str(loss_mask.dtype), loss_mask.shape) == ("bool", (3, 4))
        assert (str(groups.dtype), groups.shape) == ("int32", (3, 1, 1))
        assert [starts[0] for starts in document_starts] == [0, 0, 0]
        assert (str(samples.dtype), samples.shape) == ("int64", (3,))
    assert [batch.samples.tolist() for batch in microbatches] == [[3, 4, 5], [9, 10, 11]]


@settings(deadline=None, max_examples=50)  # a deadline would time the disk
@given(first=st.integers(0, 10**9), data_size=st.sampled_from([1, 2, 3, 6]), size=st.sampled_from([1, 2, 4]))
def test_a_step_is_the_same_samples_in_every_layout(data: Path, first: int, data_size: int, size: int) -> None:
    batches = batches_of(data)
    alone = in_order([batches.step_batches(first, 24, 24, 0, 1)])
    assert in_order([batches.step_batches(first, 24, size, rank, data_size) for rank in range(data_size)]) == alone


def test_steps_follow_each_other_without_gap_or_repeat(data: Path) -> None:
    batches = batches_of(data)
    one_by_one = [row for step in range(5) for row in in_order([batches.step_batches(24 * step, 24, 4, 0, 1)])]
    assert one_by_one == in_order([batches.step_batches(0, 120, 8, 0, 1)])


def test_samples_that_do_not_divide_are_refused(data: Path) -> None:
    with pytest.raises(LayoutError, match="24 samples, 5 data-parallel ranks x microbatches of 2"):
        batches_of(data).step_batches(0, 24, 2, 0, 5)


def test_a_run_follows_its_plan(data: Path) -> None:
    batches = batches_of(data)
    rows = in_order([batches.step_batches(0, 250, 10, 0, 1)])
    drawn = Counter(batches.group_names[corpus] for _, corpus, _, _ in rows)
    assert drawn == {total.name: total.samples for total in batches.plan.totals(250)}
    assert drawn == {"math": 140, "code": 85, "prose": 25}
    counted = Counter(targets(tokens_of(batches, "math", 0, 250)))
    assert set(counted) == set(range(240))
    assert sorted(counted.values()) == [2] * 160 + [3] * 80  # two epochs, and 20 of 60 windows of 4


def test_a_step_is_drawn_from_the_version_that_holds_at_its_first_sample(data: Path) -> None:
    first = planned(config(data))
    only_prose = mixture(corpus("prose", 1.0, data / "prose"))
    batches = opened(planned(only_prose, first, next_sample=48))
    before = opened(first)
    assert in_order([batches.step_batches(36, 24, 24, 0, 1)]) == in_order([before.step_batches(36, 24, 24, 0, 1)])
    assert {corpus for _, corpus, _, _ in in_order([batches.step_batches(48, 24, 24, 0, 1)])} == {
        batches.group_names.index("prose")
    }


def test_a_removed_corpus_keeps_its_name_and_loses_its_share(data: Path) -> None:
    later = mixture(corpus("prose", 1.0, data / "prose"), corpus("math", 3.0, data / "math"))
    batches = opened(planned(later, planned(config(data)), next_sample=48))
    assert batches.group_names == ("math", "code", "prose")
    assert batches.validation_loss(50, 9.0, {"math": 2.0, "code": 5.0, "prose": 4.0}) == 0.75 * 2.0 + 0.25 * 4.0
    rows = in_order([batches.step_batches(48, 40, 40, 0, 1)])
    assert Counter(corpus for _, corpus, _, _ in rows) == {0: 30, 2: 10}


@pytest.mark.parametrize(("size", "data_size"), [(1, 1), (4, 1), (1, 3), (2, 4), (7, 2)])
def test_validation_is_the_same_samples_in_every_layout(data: Path, size: int, data_size: int) -> None:
    batches = batches_of(data, held_out_share=0.1)
    ranks = [batches.validation_batches(5, size, rank, data_size) for rank in range(data_size)]
    assert len({len(microbatches) for microbatches in ranks}) == 1
    rows = in_order(ranks)
    learned = [
        mask.all(axis=1) for mask in (batch.loss_mask for batch in chain.from_iterable(zip(*ranks, strict=True)))
    ]
    counted = [row for row in rows if row[1] != PADDING]
    assert np.concatenate(learned).tolist() == [row[1] != PADDING for row in rows]
    assert counted == rows[: len(counted)]
    assert len(rows) - len(counted) < size * data_size
    assert counted == [
        (5 * corpus + number, corpus, *(part.tolist() for part in held_out.read(number)))
        for corpus, held_out in enumerate(batches.validation.values())
        for number in range(5)
    ]


def test_validation_reads_no_held_out_sample_twice(data: Path) -> None:
    rows = in_order([batches_of(data, held_out_share=0.1).validation_batches(10**9, 1, 0, 1)])
    assert Counter(corpus for _, corpus, _, _ in rows) == {0: 5, 1: 15, 2: 25}  # 2, 6, 10 documents, stride 4
    assert set(Counter(targets([tokens for _, _, tokens, _ in rows])).values()) == {1}


def test_without_a_held_out_share_there_is_no_validation(data: Path) -> None:
    assert batches_of(data).validation_batches(10, 2, 1, 2) == []
