from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from megatron_dsmath.data.audit.ledger import GOLDEN, StepHash, differing_sample, sample_hashes, step_hash

WORD = 2**64 - 1
STEPS = st.integers(1, 12).flatmap(
    lambda length: st.lists(
        st.lists(st.integers(0, 2**31 - 1), min_size=length, max_size=length), min_size=2, max_size=9
    )
)


def theirs(tokens: list[int], sample: int) -> int:
    """The same in Python's whole numbers; SplitMix64 as Steele, Lea and Flood give it (OOPSLA 2014, figure 16)."""

    def split_mix(word: int) -> int:
        word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 & WORD
        word = (word ^ word >> 27) * 0x94D049BB133111EB & WORD
        return word ^ word >> 31

    keys = [split_mix(place * GOLDEN & WORD) | 1 for place in range(1, len(tokens) + 1)]
    return split_mix(sum(token * key for token, key in zip(tokens, keys, strict=True)) + sample * GOLDEN & WORD)


def hash_of(tokens: np.ndarray, samples: np.ndarray) -> StepHash:
    return step_hash(sample_hashes(tokens, samples), samples)


@given(step=STEPS, first=st.integers(0, 10**9))
def test_a_hash_is_the_sum_of_multilinear_hashes(step: list[list[int]], first: int) -> None:
    tokens, samples = np.array(step), np.arange(first, first + len(step))
    hashes = [theirs(row, sample) for row, sample in zip(step, samples.tolist(), strict=True)]
    assert sample_hashes(tokens, samples).tolist() == hashes
    moment = sum(one * sample for one, sample in zip(hashes, samples.tolist(), strict=True))
    assert hash_of(tokens, samples) == (sum(hashes) & WORD, moment & WORD)


@given(step=STEPS, first=st.integers(0, 10**9), cut=st.integers(0, 9), order=st.randoms())
def test_the_hash_is_the_sum_of_parts_in_any_order(step: list[list[int]], first: int, cut: int, order: object) -> None:
    tokens, samples = np.array(step), np.arange(first, first + len(step))
    rows = list(range(len(step)))
    order.shuffle(rows)  # type: ignore[attr-defined]
    parts = [hash_of(tokens[part], samples[part]) for part in (rows[:cut], rows[cut:])]
    assert tuple(sum(column) & WORD for column in zip(*parts, strict=True)) == hash_of(tokens, samples)


@given(step=STEPS, first=st.integers(0, 10**9), data=st.data())
def test_one_changed_token_is_always_found_with_its_sample(
    step: list[list[int]], first: int, data: st.DataObject
) -> None:
    tokens, samples = np.array(step), np.arange(first, first + len(step))
    row, place = data.draw(st.integers(0, len(step) - 1)), data.draw(st.integers(0, len(step[0]) - 1))
    changed = tokens.copy()
    changed[row, place] = data.draw(st.integers(0, 2**31 - 1).filter(lambda token: token != tokens[row, place]))
    found = hash_of(changed, samples)
    assert found.total != hash_of(tokens, samples).total
    assert differing_sample(found, sample_hashes(tokens, samples), samples) == row


def test_several_changed_samples_are_not_attributed_to_one() -> None:
    tokens, samples = np.arange(50).reshape(10, 5), np.arange(70, 80)
    changed = tokens.copy()
    changed[[2, 7], 3] += 1
    assert differing_sample(hash_of(changed, samples), sample_hashes(tokens, samples), samples) is None


def test_exchanged_samples_are_found() -> None:
    tokens, samples = np.arange(10).reshape(2, 5), np.arange(2)
    assert hash_of(tokens[::-1].copy(), samples).total != hash_of(tokens, samples).total


def test_exchanged_tokens_are_found() -> None:
    tokens, samples = np.array([[3, 4, 5]]), np.arange(1)
    assert hash_of(tokens[:, ::-1].copy(), samples).total != hash_of(tokens, samples).total
