from __future__ import annotations

from fractions import Fraction
from math import inf, nan

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_dsmath.data.mixture.blend import Blend
from megatron_dsmath.errors import ConfigError

PAPER = {"math": 56.0, "algebraic_stack": 4.0, "arxiv": 10.0, "code": 20.0, "natural_language": 10.0}  # section 2.3
PAPER_SAMPLES = 47_684 * 2_560  # 500B tokens

WEIGHTS = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=12).map(
    lambda weights: {f"corpus_{place}": weight for place, weight in enumerate(weights)}
)


def test_equal_weights_take_turns() -> None:
    draw = Blend({"a": 1, "b": 1}).locate(np.arange(6))
    assert draw.corpus.tolist() == [0, 1, 0, 1, 0, 1]
    assert draw.number.tolist() == [0, 0, 1, 1, 2, 2]


def test_one_in_four_is_drawn_when_half_of_it_is_due() -> None:
    draw = Blend({"a": 3, "b": 1}).locate(np.arange(8))
    assert draw.corpus.tolist() == [0, 1, 0, 0, 0, 1, 0, 0]  # b is owed 1/4, 2/4 -> drawn, ..., 5/4, 6/4 -> drawn
    assert draw.number.tolist() == [0, 0, 1, 2, 3, 1, 4, 5]


def test_a_single_corpus_gets_every_sample() -> None:
    draw = Blend({"a": 0.1}).locate(np.arange(5, 9))
    assert (draw.corpus.tolist(), draw.number.tolist()) == ([0, 0, 0, 0], [5, 6, 7, 8])


def test_each_fifty_samples_hold_the_papers_mixture() -> None:
    corpora = Blend(PAPER).locate(np.arange(500)).corpus.reshape(10, 50)
    assert [np.bincount(part).tolist() for part in corpora] == [[28, 2, 5, 10, 5]] * 10


def test_counts_at_step_47000_of_the_paper_equal_its_shares() -> None:
    blend, first = Blend(PAPER), 47_000 * 2_560
    late, early = blend.locate(np.arange(first, first + 2_560)), blend.locate(np.arange(2_560))
    drawn_before = np.array([67_379_200, 4_812_800, 12_032_000, 24_064_000, 12_032_000])  # first x weight / 100
    assert late.corpus.tolist() == early.corpus.tolist()
    assert late.number.tolist() == (early.number + drawn_before[early.corpus]).tolist()


def test_epochs_of_the_paper_follow_from_its_weights() -> None:
    tokens = np.array([120.2e9, 10.3e9, 28.0e9])  # sizes the paper gives
    epochs = Blend(PAPER).counts(np.array([PAPER_SAMPLES]))[0, :3] * 4096 / tokens
    assert [f"{epoch:.2f}" for epoch in epochs] == ["2.33", "1.94", "1.79"]


@given(weights=WEIGHTS, late=st.integers(0, PAPER_SAMPLES))
def test_every_prefix_is_within_two_samples_of_every_weight(weights: dict[str, float], late: int) -> None:
    prefixes = np.concatenate([np.arange(300), np.arange(late, late + 300)])
    counts = Blend(weights).counts(prefixes).tolist()
    shares = [Fraction(weight) / sum(map(Fraction, weights.values())) for weight in weights.values()]
    for prefix, row in zip(prefixes.tolist(), counts, strict=True):
        assert sum(row) == prefix
        assert all(abs(count - prefix * share) < 2 for count, share in zip(row, shares, strict=True))


@given(weights=WEIGHTS, first=st.integers(0, PAPER_SAMPLES))
def test_the_samples_of_a_corpus_are_numbered_without_gaps(weights: dict[str, float], first: int) -> None:
    blend = Blend(weights)
    draw = blend.locate(np.arange(first, first + 300))
    before, after = blend.counts(np.array([first, first + 300])).tolist()
    for corpus in range(len(weights)):
        assert draw.number[draw.corpus == corpus].tolist() == list(range(before[corpus], after[corpus]))


@given(weights=st.lists(st.integers(1, 30), min_size=1, max_size=6))
def test_largest_deviations_equal_those_counted_one_by_one(weights: list[int]) -> None:
    blend, total = Blend({str(place): weight for place, weight in enumerate(weights)}), sum(weights)
    drawn = blend.locate(np.arange(2 * total)).corpus.tolist()
    theirs = [
        max(abs(drawn[:prefix].count(corpus) - Fraction(prefix * weight, total)) for prefix in range(1, 2 * total + 1))
        for corpus, weight in enumerate(weights)
    ]
    assert blend.largest_deviations(10**12) == tuple(map(float, theirs))


def test_largest_deviations_by_hand() -> None:
    assert Blend({"a": 3, "b": 1}).largest_deviations(100) == (0.5, 0.5)  # after two samples: 1 and 1, owed 1.5 and 0.5
    assert Blend({"a": 3, "b": 1}).largest_deviations(1) == (0.25, 0.25)


def test_the_unit_of_the_weights_does_not_matter() -> None:
    percent, samples = Blend(PAPER), np.arange(1000)
    for unit in (0.01, 0.7, 1e9):
        blend = Blend({name: round(weight * unit, 6) for name, weight in PAPER.items()})
        assert blend.locate(samples).corpus.tolist() == percent.locate(samples).corpus.tolist()


@given(weights=WEIGHTS, order=st.randoms())
def test_the_order_of_the_entries_does_not_matter(weights: dict[str, float], order: object) -> None:
    names = list(weights)
    order.shuffle(names)  # type: ignore[attr-defined]
    ours, theirs = Blend(weights), Blend({name: weights[name] for name in names})
    ours_drawn = [ours.names[corpus] for corpus in ours.locate(np.arange(200)).corpus]
    assert ours_drawn == [theirs.names[corpus] for corpus in theirs.locate(np.arange(200)).corpus]


@pytest.mark.parametrize("weight", [nan, inf, -1.0, 0.0])
def test_an_invalid_weight_is_refused_by_name(weight: float) -> None:
    with pytest.raises(ConfigError, match=r"data\.corpora\.arxiv\.weight") as refusal:
        Blend({"math": 56.0, "arxiv": weight})
    assert str(weight) in refusal.value.text()
