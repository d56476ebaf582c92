"""A run whose mixture changes continues with the data that it has not read yet."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dsmath.config.sections import DataConfig
from megatron_dsmath.data.mixture.corpus_shards import Shards
from megatron_dsmath.data.mixture.mixture_plan import MixturePlan
from megatron_dsmath.data.mixture.mixture_planning import plan_run
from megatron_dsmath.errors import ConfigError, DataError, DsmathError
from tests.support.mixtures import SEED, corpus, mixture, only_phase, opened, planned, targets, tokens_of, write_shard


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 40 tokens and more in documents of 5; a token is its place in all of them."""
    folder = tmp_path_factory.mktemp("data")
    for place, (name, tokens) in enumerate({"a": 40, "b": 80, "c": 40, "d": 60, "e": 100}.items()):
        write_shard(folder / name, range(1000 * place, 1000 * place + tokens), document_tokens=5)
    return folder


def drawn(plan: MixturePlan, name: str, *parts: tuple[int, int]) -> list[list[int]]:
    """What a run reads of a corpus from sample to sample, for each of `parts`."""
    batches = opened(plan)
    return [sample for first, end in parts for sample in tokens_of(batches, name, first, end - first)]


def test_the_same_configuration_changes_nothing(data: Path) -> None:
    math, code = corpus("math", 3.0, data / "a"), corpus("code", 1.0, data / "b", data / "c")
    first = planned(mixture(math, code))
    again = planned(mixture(code, math, held_out_share=0.0), first, next_sample=20)
    assert again == first
    assert len(again.versions) == 1


def test_a_plan_restored_from_a_checkpoint_continues_unchanged(data: Path) -> None:
    config = mixture(corpus("math", 3.0, data / "a"), held_out_share=0.1)
    first = planned(config)
    restored = MixturePlan.model_validate(json.loads(json.dumps(first.model_dump(mode="json"))), strict=False)
    assert planned(config, restored, next_sample=20) == first


def test_new_weights_continue_with_unread_data(data: Path) -> None:
    math, code = corpus("math", 3.0, data / "a"), corpus("code", 1.0, data / "b")
    undisturbed = planned(mixture(math, code))
    plan = planned(mixture(corpus("math", 1.0, data / "a"), code), undisturbed, next_sample=24)
    for name in ("math", "code"):
        samples = drawn(plan, name, (0, 24), (24, 100))
        assert samples == drawn(undisturbed, name, (0, 1000))[: len(samples)]
    drawn_since = [len(drawn(plan, name, (24, 100))) for name in ("math", "code")]
    assert drawn_since == [38, 38]


def test_an_added_corpus_begins_at_its_first_sample(data: Path) -> None:
    math, code = corpus("math", 3.0, data / "a"), corpus("code", 1.0, data / "b")
    plan = planned(mixture(math, code), planned(mixture(math)), next_sample=13)
    alone = planned(mixture(code))
    assert drawn(plan, "code", (0, 13)) == []
    assert drawn(plan, "code", (13, 53)) == drawn(alone, "code", (0, 10))


def test_a_corpus_added_again_continues_at_its_last_position(data: Path) -> None:
    math, code = corpus("math", 3.0, data / "a"), corpus("code", 1.0, data / "b")
    undisturbed = planned(mixture(math, code))
    without = planned(mixture(math), undisturbed, next_sample=20)
    plan = planned(mixture(math, code), without, next_sample=30)
    assert drawn(plan, "code", (20, 30)) == []
    samples = drawn(plan, "code", (0, 20), (30, 50))
    assert samples == drawn(undisturbed, "code", (0, 40))
    assert plan.totals(50)[1].samples == len(samples) == 10


def test_an_added_shard_is_read_from_the_next_epoch_on(data: Path) -> None:
    before = planned(mixture(corpus("math", 1.0, data / "a")))  # epochs of 10 samples
    plan = planned(mixture(corpus("math", 1.0, data / "a", data / "c")), before, next_sample=7)
    assert drawn(plan, "math", (0, 7), (7, 10)) == drawn(before, "math", (0, 10))
    next_epoch = targets(drawn(plan, "math", (10, 30)))  # 80 tokens: 20 samples
    assert Counter(next_epoch) == Counter([*range(40), *range(2000, 2040)])


def test_a_removed_shard_is_read_to_the_end_of_its_epoch(data: Path) -> None:
    before = planned(mixture(corpus("math", 1.0, data / "a", data / "c")))
    plan = planned(mixture(corpus("math", 1.0, data / "c")), before, next_sample=7)
    assert drawn(plan, "math", (0, 7), (7, 20)) == drawn(before, "math", (0, 20))
    assert Counter(targets(drawn(plan, "math", (20, 30)))) == Counter(range(2000, 2040))


def test_a_change_of_files_at_the_end_of_an_epoch_applies_immediately(data: Path) -> None:
    before = planned(mixture(corpus("math", 1.0, data / "a")))
    plan = planned(mixture(corpus("math", 1.0, data / "c")), before, next_sample=10)
    assert Counter(targets(drawn(plan, "math", (10, 20)))) == Counter(range(2000, 2040))


def test_a_new_sequence_length_begins_a_new_epoch(data: Path) -> None:
    math = corpus("math", 1.0, data / "a")
    plan = planned(mixture(math, sequence_length=8), planned(mixture(math)), next_sample=7)
    samples = drawn(plan, "math", (7, 12))
    assert {len(sample) for sample in samples} == {9}
    assert Counter(targets(samples)) == Counter(range(40))
    assert plan.totals(12)[0].tokens == 7 * 4 + 5 * 8


def test_a_new_length_of_the_run_keeps_all_positions(data: Path) -> None:
    config = mixture(corpus("math", 3.0, data / "a"), corpus("code", 1.0, data / "b"))
    short = planned(config, end_sample=100)
    longer = planned(config, short, next_sample=20, end_sample=200)
    assert [version.end_sample for version in longer.versions] == [100, 200]
    for name in ("math", "code"):
        assert drawn(longer, name, (0, 20), (20, 60)) == drawn(short, name, (0, 60))


def test_no_document_moves_between_training_and_validation(data: Path) -> None:
    def config(*names: str) -> DataConfig:
        return mixture(corpus("math", 1.0, *(data / name for name in names)), held_out_share=0.2)

    plan = planned(config("a", "b"))
    steps = [(("a", "b", "d"), 10), (("b", "d"), 50), (("b", "e", "a"), 100)]
    for names, next_sample in steps:
        plan = planned(config(*names), plan, next_sample=next_sample)
    parts = ((0, 10), (10, 50), (50, 100), (100, 400))
    trained = {token // 5 for part in parts for token in targets(drawn(plan, "math", part))}
    held_out: set[int] = set()
    for version in range(4):
        until = opened(plan.model_copy(update={"versions": plan.versions[: version + 1]}))
        held_out |= {
            token // 5 for batch in until.validation_batches(1000, 1, 0, 1) for token in batch.tokens.ravel().tolist()
        }
    assert trained & held_out == set()
    documents = {
        place * 200 + number for place, count in ((0, 8), (1, 16), (3, 12), (4, 20)) for number in range(count)
    }
    assert trained | held_out == documents
    assert len(held_out) == round(0.2 * 24) + round(0.2 * 12) + round(0.2 * 20)


TOKENS = {"a": 40, "b": 80, "c": 40, "d": 60, "e": 100}


class Shelf:
    """A corpus as one would read it by hand: the windows that are left of an epoch, and what the next one is of."""

    def __init__(self) -> None:
        self.epoch, self.left, self.size, self.shards = -1, 0, 0, [""]

    def take(self) -> int:
        if self.left == 0:
            self.epoch, self.left = self.epoch + 1, sum(TOKENS[shard] for shard in self.shards) // 4
            self.size = self.left
        self.left -= 1
        return self.epoch


CHANGES = st.lists(
    st.tuples(
        st.dictionaries(st.sampled_from(("math", "code", "prose")), st.integers(1, 9), min_size=1),
        st.lists(st.sampled_from(list(TOKENS)), min_size=1, max_size=3, unique=True),
        st.integers(1, 60),
    ),
    min_size=1,
    max_size=6,
)


@settings(deadline=None, max_examples=60)  # a deadline would time the disk
@given(changes=CHANGES)
def test_after_any_change_an_epoch_is_read_once_and_completely(
    data: Path, changes: list[tuple[dict[str, int], list[str], int]]
) -> None:
    plan, first = None, 0
    shelves = {name: Shelf() for name in ("math", "code", "prose")}
    read: dict[str, list[tuple[int, int]]] = {name: [] for name in shelves}
    taken: dict[str, list[int]] = {name: [] for name in shelves}
    for weights, shards, samples in changes:
        paths = {name: [shard_of(data, name, shard) for shard in shards] for name in weights}
        config = mixture(*(corpus(name, weight, *paths[name]) for name, weight in weights.items()))
        plan = planned(config, plan, first)
        drawn_from = opened(plan).mixture(len(plan.versions) - 1)
        locations = drawn_from.locate(np.arange(first, first + samples))
        for name in weights:
            shelves[name].shards = shards
        for place, epoch, start in zip(*(column.tolist() for column in locations), strict=True):
            name = drawn_from.names[place]
            read[name].append((epoch, start))
            taken[name].append(shelves[name].take())
        first += samples
    for name in shelves:
        assert [epoch for epoch, _ in read[name]] == taken[name]
        assert len(set(read[name])) == len(read[name])


def shard_of(data: Path, name: str, shard: str) -> Path:
    """A shard under a name of its own for each corpus, and the same documents whatever the corpus."""
    own = data / f"{name}_{shard}"
    if not Path(f"{own}.idx").exists():
        first = 1000 * list(TOKENS).index(shard)
        write_shard(own, range(first, first + TOKENS[shard]), document_tokens=5)
    return own


@pytest.mark.parametrize(
    ("seed", "held_out_share", "key"), [(SEED + 1, 0.1, "seed"), (SEED, 0.2, "data.held_out_share")]
)
def test_the_seed_and_the_held_out_share_cannot_change(data: Path, seed: int, held_out_share: float, key: str) -> None:
    math = corpus("math", 1.0, data / "b")
    plan = planned(mixture(math, held_out_share=0.1))
    with pytest.raises(ConfigError) as refusal:
        config = mixture(math, held_out_share=held_out_share)
        plan_run(config, seed, Shards(None), [only_phase(config, 980)], plan, 20)
    assert refusal.value.where == key
    assert f"set {key}: " in refusal.value.text()


def test_a_run_that_repeats_more_than_allowed_is_refused(data: Path) -> None:
    code = corpus("code", 34.0, data / "b")

    def config(max_epochs: float) -> DataConfig:
        return mixture(corpus("math", 56.0, data / "d", max_epochs=max_epochs), code)

    assert planned(config(56 / 15), end_sample=90).totals(90)[0].epochs == 56 / 15
    refusal = refused(ConfigError, config(3.7), end_sample=90)
    assert "data.corpora.math.max_epochs" in refusal
    assert "3.733 epochs (224 tokens)" in refusal


def test_epochs_of_earlier_versions_count_towards_the_limit(data: Path) -> None:
    math = corpus("math", 1.0, data / "a", max_epochs=2.5)
    config = mixture(math, corpus("code", 1.0, data / "b"))
    alone = planned(mixture(math), end_sample=20)
    assert planned(config, alone, next_sample=20, end_sample=30).totals(30)[0].epochs == 2.5
    with pytest.raises(ConfigError, match="more often than its max_epochs"):
        planned(config, alone, next_sample=20, end_sample=32)


@pytest.mark.parametrize("tokens", [0, 1, 4])
def test_a_corpus_without_a_whole_sample_is_refused(tmp_path: Path, tokens: int) -> None:
    refusal = refused(DataError, mixture(corpus("math", 1.0, write_shard(tmp_path / "small", range(tokens)))))
    assert "too small for one sample" in refusal
    assert "data.corpora.math" in refusal
    assert f"{tokens} tokens" in refusal
    planned(mixture(corpus("math", 1.0, write_shard(tmp_path / "enough", range(5)))))


def test_a_held_out_part_without_a_whole_sample_is_refused(data: Path) -> None:
    refusal = refused(DataError, mixture(corpus("math", 1.0, data / "b"), sequence_length=10, held_out_share=0.06))
    assert "the held-out part of the corpus is too small" in refusal
    assert "5 tokens" in refusal


@settings(deadline=None, max_examples=50)  # a deadline would time the disk
@given(share=st.floats(0.1, 0.45), sequence_length=st.integers(1, 4))
def test_training_and_validation_share_no_document(data: Path, share: float, sequence_length: int) -> None:
    config = mixture(corpus("math", 1.0, data / "d", data / "e"), sequence_length=sequence_length, held_out_share=share)
    batches = opened(planned(config))
    training, held_out = (
        {token // 5 for number in range(part.samples_per_epoch) for token in part.read(number).tokens.tolist()}
        for part in (batches.mixture(0).training[0], batches.validation["math"])
    )
    assert len(held_out) == round(share * 32)
    assert training | held_out == {*range(600, 612), *range(800, 820)}
    assert training & held_out == set()


def test_a_single_added_document_is_trained_on(data: Path, tmp_path: Path) -> None:
    before = planned(mixture(corpus("math", 1.0, data / "b"), held_out_share=0.1))
    book = write_shard(tmp_path / "book", range(5000, 5040), document_tokens=40)
    after = planned(mixture(corpus("math", 1.0, data / "b", book), held_out_share=0.1), before, 10)
    assert after.shards[1].held_out == ()


def refused(kind: type[DsmathError], config: DataConfig, end_sample: int = 1000) -> str:
    with pytest.raises(kind) as refusal:
        planned(config, end_sample=end_sample)
    return refusal.value.text()
