from __future__ import annotations

import os

import pytest

from tests.support.ranks import run_ranks


def describe_rank(prefix: str) -> str:
    return f"{prefix} {os.environ['RANK']} of {os.environ['WORLD_SIZE']}, {os.environ.get('DSMATH_TEST_WORD')}"


def fail_on_rank(rank: int, how: str) -> str:
    if int(os.environ["RANK"]) == rank:
        if how == "dies":
            os._exit(1)
        raise ValueError("on purpose")
    return "fine"


def sum_over_ranks() -> float:
    import torch

    from megatron_dsmath.parallel.topology import initialize_topology
    from tests.support.runs import run_config

    initialize_topology(run_config().parallel, seed=1)
    total = torch.tensor(1.0 + int(os.environ["RANK"]))
    torch.distributed.all_reduce(total)
    return total.item()


def test_results_are_in_the_order_of_ranks() -> None:
    found = run_ranks(3, describe_rank, "rank", environment={"DSMATH_TEST_WORD": "yes"})
    assert found == ["rank 0 of 3, yes", "rank 1 of 3, yes", "rank 2 of 3, yes"]
    assert "DSMATH_TEST_WORD" not in os.environ


def test_ranks_form_a_process_group() -> None:
    assert run_ranks(2, sum_over_ranks) == [3.0, 3.0]


@pytest.mark.parametrize(("how", "message"), [("raises", "ValueError: on purpose"), ("dies", "rank 1 died")])
def test_a_rank_that_fails_is_named(how: str, message: str) -> None:
    with pytest.raises(RuntimeError, match="rank 1") as failed:
        run_ranks(2, fail_on_rank, 1, how)
    assert message in str(failed.value)
