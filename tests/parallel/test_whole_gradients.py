from __future__ import annotations

import numpy as np
import pytest

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.model import decoder
from megatron_dsmath.parallel.optimizer import gather_gradients
from tests.support.ranks import run_ranks
from tests.support.runs import run_config
from tests.support.training import start

Gradients = dict[str, np.ndarray]


def before_and_after(run: RunConfig) -> tuple[Gradients, Gradients]:
    """What this rank holds of the reduced gradients, before and after gathering."""
    training = start(run)
    training.accumulate(0)

    def held() -> Gradients:
        named = decoder.named_parameters(training.model_chunks)
        return {name: tensor.main_grad.numpy().copy() for name, tensor in named}  # type: ignore[attr-defined]

    before = held()
    gather_gradients(training.model_chunks)
    return before, held()


@pytest.mark.parametrize("layout", [{}, {"parallel__overlap_communication": True}])
def test_every_rank_holds_what_plain_data_parallelism_gives_it(layout: dict[str, bool]) -> None:
    plain = run_ranks(2, before_and_after, run_config(parallel__distributed_optimizer=False))[0][1]
    ranks = run_ranks(2, before_and_after, run_config(**layout))
    for before, after in ranks:
        assert all(np.allclose(after[name], plain[name], rtol=0, atol=1e-7) for name in plain)  # sums of two: one order
        assert not all(np.allclose(before[name], plain[name], rtol=0, atol=1e-7) for name in plain)  # a shard alone
