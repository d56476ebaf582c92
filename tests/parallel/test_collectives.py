from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_dsmath.config.parallel import ParallelConfig
from megatron_dsmath.parallel import topology
from megatron_dsmath.parallel.collectives import any_rank, from_first_rank, gather, sum_of_reports
from tests.support.ranks import run_ranks
from tests.support.runs import run_config


def summed(parallel: ParallelConfig) -> list[float]:
    """The last stage's ranks report 1 and 10 from two microbatches, times a hundred on data-parallel rank 1."""
    place = topology.start(parallel, seed=1)
    unit = 100.0**place.data_rank
    reports = [torch.full((2,), unit), torch.full((2,), 10 * unit)] if place.is_last_stage else []
    found: list[float] = sum_of_reports(reports, (2,), place).tolist()
    return found


@pytest.mark.parametrize(
    ("ranks", "parallel", "expected"),
    [
        (1, {}, 11.0),
        (2, {"parallel__tensor": 2}, 11.0),  # both hold the same report, which counts once
        (2, {"parallel__pipeline": 2}, 11.0),  # only the last stage has one
        (2, {}, 1111.0),
        (4, {"parallel__tensor": 2}, 1111.0),
    ],
)
def test_each_report_counts_once_on_every_rank(ranks: int, parallel: dict[str, Any], expected: float) -> None:
    assert run_ranks(ranks, summed, run_config(**parallel).parallel) == [[expected, expected]] * ranks


def tell(parallel: ParallelConfig) -> dict[str, Any]:
    place = topology.start(parallel, seed=1)
    return {
        "one": any_rank(place.rank == 1, place),
        "none": any_rank(False, place),
        "all": gather({"rank": place.rank}, place),
        "first": from_first_rank(f"said by {place.rank}"),
    }


def test_ranks_agree_on_what_one_of_them_knows() -> None:
    expected = {"one": True, "none": False, "all": [{"rank": 0}, {"rank": 1}], "first": "said by 0"}
    assert run_ranks(2, tell, run_config().parallel) == [expected, expected]
