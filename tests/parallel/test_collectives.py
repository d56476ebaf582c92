from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from megatron_dsmath.config.sections import ParallelConfig
from megatron_dsmath.parallel.collectives import (
    broadcast_object,
    gather_objects,
    sum_reports,
    sum_step,
    true_on_any_rank,
)
from megatron_dsmath.parallel.topology import initialize_topology
from tests.support.ranks import run_ranks
from tests.support.runs import run_config


def summed(parallel: ParallelConfig) -> list[float]:
    """Ranks of the last stage report 1 and 10 for two microbatches, times 100 on data-parallel rank 1."""
    topology = initialize_topology(parallel, seed=1)
    unit = 100.0**topology.data_rank
    reports = [torch.full((2,), unit), torch.full((2,), 10 * unit)] if topology.is_last_stage else []
    found: list[float] = sum_reports(reports, (2,), topology).tolist()
    return found


@pytest.mark.parametrize(
    ("ranks", "parallel", "expected"),
    [
        (1, {}, 11.0),
        (2, {"parallel__tensor": 2}, 11.0),  # both have the same report, which counts once
        (2, {"parallel__pipeline": 2}, 11.0),  # only the last stage has one
        (2, {}, 1111.0),
        (4, {"parallel__tensor": 2}, 1111.0),
    ],
)
def test_each_report_counts_once_on_every_rank(ranks: int, parallel: dict[str, Any], expected: float) -> None:
    assert run_ranks(ranks, summed, run_config(**parallel).parallel) == [[expected, expected]] * ranks


def agreed(parallel: ParallelConfig, norms: list[float]) -> tuple[list[float], float]:
    """Each rank has another norm."""
    topology = initialize_topology(parallel, seed=1)
    words = torch.zeros(0, dtype=torch.int64)
    totals, norm, _ = sum_step([torch.full((2,), 1.0)], (2,), norms[topology.rank], words, topology)
    return totals.tolist(), norm


@pytest.mark.parametrize("parallel", [{}, {"parallel__tensor": 2}], ids=str)
@pytest.mark.parametrize(
    ("norms", "norm"),
    [
        ([0.1, 0.3], 0.1),  # bit for bit: nothing is added to it
        ([0.1, math.inf], math.inf),
        ([math.inf, 0.3], math.inf),
        ([0.1, math.nan], math.nan),
        ([math.nan, math.inf], math.nan),
    ],
)
def test_all_ranks_go_by_one_norm_and_it_is_none_where_any_is(
    parallel: dict[str, Any], norms: list[float], norm: float
) -> None:
    total = 1.0 if parallel else 2.0
    found = run_ranks(2, agreed, run_config(**parallel).parallel, norms)
    assert str(found) == str([([total, total], norm)] * 2)  # as text, since NaN is not equal to itself


def summed_words(words: list[list[int]]) -> list[int]:
    topology = initialize_topology(run_config().parallel, seed=1)
    _, _, sums = sum_step([], (2,), 0.0, torch.tensor(words[topology.rank]), topology)
    return sums


def test_words_are_summed_exactly_modulo_2_to_the_64() -> None:
    words = [[2**63 - 1, -1, 7, -(2**63)], [2**63 - 1, 1, -(2**62) + 5, -(2**63)]]
    sums = [(first + second) % 2**64 for first, second in zip(*words, strict=True)]
    assert run_ranks(2, summed_words, words) == [sums, sums]


def use_collectives(parallel: ParallelConfig) -> dict[str, Any]:
    topology = initialize_topology(parallel, seed=1)
    return {
        "one": true_on_any_rank([topology.rank == 1, False, topology.rank == 0, True], topology),
        "all": gather_objects({"rank": topology.rank}, topology),
        "first": broadcast_object(f"value of rank {topology.rank}"),
    }


def test_ranks_agree_on_what_one_of_them_knows() -> None:
    expected = {"one": [True, False, True, True], "all": [{"rank": 0}, {"rank": 1}], "first": "value of rank 0"}
    assert run_ranks(2, use_collectives, run_config().parallel) == [expected, expected]
