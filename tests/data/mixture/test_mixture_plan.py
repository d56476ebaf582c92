from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from megatron_dsmath.data.audit.ledger import LedgerRow
from megatron_dsmath.data.mixture.mixture_plan import CorpusPosition, CorpusTotal, MixturePlan, Shard, Version

PAPER = {"math": 56.0, "algebraic_stack": 4.0, "arxiv": 10.0, "code": 20.0, "natural_language": 10.0}  # section 2.3
SIZES = {"math": 120.2e9, "algebraic_stack": 10.3e9, "arxiv": 28.0e9, "code": 100e9, "natural_language": 50e9}
PAPER_SAMPLES = 47_684 * 2_560  # 500B tokens


def plan(
    weights: Mapping[str, float], tokens: Mapping[str, float], sequence_length: int, end_sample: int
) -> MixturePlan:
    shards = [Shard(prefix=name, documents=1, tokens=int(tokens[name]), sha256=None, held_out=()) for name in weights]
    corpora = [
        CorpusPosition(name=name, weight=weight, shards=(place,), epoch=0, position=0, epoch_shards=(place,))
        for place, (name, weight) in enumerate(weights.items())
    ]
    version = version_of(corpora, 0, sequence_length, end_sample)
    return MixturePlan(seed=1, held_out_share=0.0, shards=tuple(shards), versions=(version,))


def version_of(
    corpora: Sequence[CorpusPosition], first_sample: int, sequence_length: int = 4, end_sample: int = 10_000
) -> Version:
    return Version(
        first_sample=first_sample,
        skipped_samples=0,
        end_sample=end_sample,
        sequence_length=sequence_length,
        corpora=tuple(corpora),
    )


def test_epochs_of_the_paper_follow_from_its_weights() -> None:
    totals = plan(PAPER, SIZES, 4096, PAPER_SAMPLES).totals(PAPER_SAMPLES)
    assert [f"{total.epochs:.2f}" for total in totals[:3]] == ["2.33", "1.94", "1.79"]
    assert sum(total.tokens for total in totals) == PAPER_SAMPLES * 4096


def test_totals_count_fractional_epochs() -> None:
    sizes = {"math": 240, "code": 600, "prose": 1000}
    totals = plan({"math": 56.0, "code": 34.0, "prose": 10.0}, sizes, 4, 1000).totals(250)
    assert totals == (
        CorpusTotal("math", 0.56, samples=140, tokens=560, epochs=140 / 60),
        CorpusTotal("code", 0.34, samples=85, tokens=340, epochs=85 / 150),
        CorpusTotal("prose", 0.1, samples=25, tokens=100, epochs=25 / 250),
    )


def test_a_version_is_valid_until_the_next_one_begins() -> None:
    later = plan({"a": 1.0}, {"a": 100}, 4, 1000).with_skipped(50, 10)
    assert [later.version_at(sample) for sample in (0, 49, 59, 60, 61, 10**9)] == [0, 0, 0, 1, 1, 1]


def test_skipped_samples_are_not_counted() -> None:
    first = plan({"a": 3.0, "b": 1.0}, {"a": 4000, "b": 4000}, 4, 1000)
    later = first.with_skipped(next_sample=50, samples=30)
    assert (later.versions[1].first_sample, later.versions[1].skipped_samples) == (80, 30)
    assert later.versions[1].end_sample == 1030  # as many steps as before
    assert later.versions[1].corpora == tuple(first.corpus_positions(0, 80).values())
    for sample, trained in ((50, 50), (65, 50), (80, 50), (120, 90)):
        assert sum(total.samples for total in later.totals(sample)) == trained


def test_corpus_positions_by_hand() -> None:
    one = plan({"a": 1.0}, {"a": 41}, 4, 1000)  # epochs of 10 samples
    for sample, epoch, position in ((0, 0, 0), (9, 0, 9), (10, 1, 0), (11, 1, 1), (39, 3, 9)):
        corpus = one.corpus_positions(0, sample)["a"]
        assert (corpus.epoch, corpus.position) == (epoch, position)


def test_a_corpus_that_grew_continues_with_longer_epochs() -> None:
    one = plan({"a": 1.0}, {"a": 41}, 4, 1000)
    grown = Shard(prefix="more", documents=1, tokens=20, sha256=None, held_out=((0, 8),))  # epochs of 13 samples
    corpus = one.corpus_positions(0, 7)["a"].model_copy(update={"shards": (0, 1)})
    version = version_of([corpus], 7)
    two = one.model_copy(update={"shards": (*one.shards, grown), "versions": (*one.versions, version)})
    for sample, epoch, position, shards in (
        (9, 0, 9, (0,)),
        (10, 1, 0, (0, 1)),
        (22, 1, 12, (0, 1)),
        (23, 2, 0, (0, 1)),
    ):
        corpus = two.corpus_positions(1, sample)["a"]
        assert (corpus.epoch, corpus.position, corpus.epoch_shards) == (epoch, position, shards)
    assert two.totals(22)[0].epochs == float(1 + Fraction(12, 13))


@given(
    weights=st.lists(st.lists(st.integers(1, 100), min_size=2, max_size=5), min_size=1, max_size=6),
    lengths=st.lists(st.integers(1, 500), min_size=6, max_size=6),
)
def test_every_prefix_of_a_version_is_within_two_samples_of_its_weights(
    weights: list[list[int]], lengths: list[int]
) -> None:
    versioned, first = plan({"0": 1.0}, {"0": 100}, 4, 10_000), 0
    versions = []
    for row, length in zip(weights, lengths, strict=False):
        positions = [
            CorpusPosition(name=str(place), weight=weight, shards=(0,), epoch=0, position=0, epoch_shards=(0,))
            for place, weight in enumerate(row)
        ]
        versions.append(version_of(positions, first))
        first += length
    many = versioned.model_copy(update={"versions": tuple(versions)})
    for place, (row, length) in enumerate(zip(weights, lengths, strict=False)):
        begin = versions[place].first_sample
        before = {total.name: total.samples for total in many.totals(begin)}
        for sample in np.linspace(begin, begin + length, 5, dtype=int).tolist():
            after = {total.name: total.samples for total in many.totals(sample)}
            for corpus, weight in enumerate(row):
                owed = Fraction(weight * (sample - begin), sum(row))
                assert abs(after[str(corpus)] - before[str(corpus)] - owed) < 2


def test_a_plan_is_stored_as_plain_json() -> None:
    later = plan(PAPER, SIZES, 4096, PAPER_SAMPLES).with_skipped(47_000 * 2560, 2560)
    text = json.dumps(later.model_dump(mode="json"))
    assert MixturePlan.model_validate_json(text) == later
    assert MixturePlan.model_validate_json(text).totals(PAPER_SAMPLES) == later.totals(PAPER_SAMPLES)
    assert len(text) < 4000


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"shards":[4]', '"shards":[5]'),
        ('"epoch_shards":[0]', '"epoch_shards":[9]'),
        ('"first_sample":0', '"first_sample":1'),
    ],
)
def test_a_contradictory_plan_is_refused(old: str, new: str) -> None:
    text = plan(PAPER, SIZES, 4096, PAPER_SAMPLES).model_dump_json()
    assert old in text
    with pytest.raises(ValidationError):
        MixturePlan.model_validate_json(text.replace(old, new))


def test_the_documented_plan_and_row_are_valid() -> None:
    page = (Path(__file__).parents[3] / "docs" / "data_plan.md").read_text(encoding="utf-8")
    documented, row = (block.partition("```")[0] for block in page.split("```json")[1:])
    plan_shown = MixturePlan.model_validate_json(documented)
    first, second = plan_shown.versions
    positions = plan_shown.corpus_positions(0, second.first_sample)
    for corpus in second.corpora:
        assert (corpus.epoch, corpus.position) == (positions[corpus.name].epoch, positions[corpus.name].position)
    assert plan_shown.samples_per_epoch((1,), first.sequence_length) == 37
    assert LedgerRow.model_validate_json(row).step == 1


@pytest.mark.parametrize("sample", [0, 1_000_000, PAPER_SAMPLES])
def test_the_parts_of_a_run_add_up(sample: int) -> None:
    totals = plan(PAPER, SIZES, 4096, PAPER_SAMPLES).totals(sample)
    assert sum(total.samples for total in totals) == sample
