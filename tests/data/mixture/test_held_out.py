from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from megatron_dsmath.data.mixture.mixture_planning import held_out_runs

SHARES = st.floats(0.0001, 0.4999)


@given(documents=st.integers(2, 10**8), share=SHARES, seed=st.integers(0, 100))
def test_runs_hold_the_share_in_order_without_overlap(documents: int, share: float, seed: int) -> None:
    runs = held_out_runs(documents, share, seed, "math")
    assert 1 <= len(runs) <= 8
    assert all(runs)
    assert sum(map(len, runs)) == max(1, round(share * documents))
    assert runs[0].start >= 0
    assert runs[-1].stop <= documents
    assert all(earlier.stop <= later.start for earlier, later in pairwise(runs))


@given(documents=st.integers(2, 10**8), share=SHARES, seed=st.integers(0, 100))
def test_runs_are_evenly_spaced_and_long(documents: int, share: float, seed: int) -> None:
    runs = held_out_runs(documents, share, seed, "math")
    distances = {later.start - earlier.start for earlier, later in pairwise(runs)}
    assert distances <= {documents // len(runs), documents // len(runs) + 1}
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


def test_one_in_ten_of_eighty_documents_is_one_in_each_ten() -> None:
    runs = held_out_runs(80, 0.1, 1234, "math")
    assert [run.start // 10 for run in runs] == list(range(8))
    assert {len(run) for run in runs} == {1}
    assert len({run.start % 10 for run in runs}) == 1


def test_the_seed_and_the_corpus_determine_the_runs() -> None:
    starts = {held_out_runs(10**6, 0.01, seed, name)[0].start for seed in (1, 2) for name in ("math", "code")}
    assert len(starts) == 4
    assert held_out_runs(10**6, 0.01, 1, "math") == held_out_runs(10**6, 0.01, 1, "math")


@pytest.mark.parametrize(("documents", "share", "expected"), [(0, 0.1, 0), (1, 0.1, 0), (4, 0.1, 0), (6, 0.1, 1)])
def test_added_documents_may_hold_none_out(documents: int, share: float, expected: int) -> None:
    assert sum(map(len, held_out_runs(documents, share, 1, "math", at_least=0))) == expected


def test_no_documents_hold_none_out() -> None:
    assert held_out_runs(0, 0.1, 1, "math") == []


@pytest.mark.parametrize("documents", [0, 1, 1000])
def test_no_share_holds_nothing_out(documents: int) -> None:
    assert held_out_runs(documents, 0.0, 1, "math") == []
