from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.model import decoder
from megatron_dsmath.model.loss import sum_by_group
from megatron_dsmath.parallel.pipeline import run_microbatches
from tests.support import training
from tests.support.ranks import run_ranks
from tests.support.runs import run_config

LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (1, {}),
    (2, {"parallel__pipeline": 2}),
    (2, {"parallel__pipeline": 2, "parallel__virtual_stages": 2}),
    (2, {"parallel__pipeline": 2, "parallel__virtual_stages": 2, "data__attend_across_documents": False}),
    (2, {"parallel__tensor": 2, "parallel__sequence": True}),
    (2, {"parallel__overlap_communication": True}),
]


def validated(run: RunConfig) -> dict[str, Any]:
    """A pass without backward, then one with, over the same batch and weights."""
    opened = training.start(run)
    named = dict(decoder.named_parameters(opened.model_chunks))
    for tensor in named.values():
        tensor.main_grad.fill_(7)  # type: ignore[attr-defined]
    asked = []

    def loss_of(nats: torch.Tensor, batch: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        asked.append(nats.requires_grad)
        return sum_by_group(nats, batch, training.CORPORA)

    run_microbatches(opened.model_chunks, opened.share(0), loss_of, backward=False)
    forward = opened.accumulate(0, backward=False)
    untouched = all(bool((tensor.main_grad == 7).all()) for tensor in named.values())  # type: ignore[attr-defined]
    return {
        "forward": forward.tolist(),
        "backward": opened.accumulate(0).tolist(),
        "graphs": asked,
        "untouched": untouched,
        "last": opened.topology.is_last_stage,
    }


@pytest.mark.parametrize(("ranks", "overrides"), LAYOUTS)
def test_validation_has_the_loss_of_training_and_no_gradients(ranks: int, overrides: dict[str, Any]) -> None:
    for found in run_ranks(ranks, validated, run_config(**overrides)):
        assert found["forward"] == found["backward"]
        assert found["untouched"]
        microbatches = 4 if overrides.get("parallel__overlap_communication") is None else 2
        # No activation is kept, since there is no backward pass.
        assert found["graphs"] == ([False] * microbatches if found["last"] else [])


def tokens_seen(run: RunConfig) -> list[list[int]]:
    """The first token of each sequence, in the order of calls of the loss."""
    opened = training.start(run)
    seen: list[list[int]] = []

    def loss_of(nats: torch.Tensor, batch: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        seen.append(batch.tokens[:, 0].tolist())
        return nats.sum(), torch.tensor(nats.numel()).int(), torch.tensor(1.0)

    reports = run_microbatches(opened.model_chunks, opened.share(0), loss_of, backward=True)
    assert len(reports) == len(seen)
    return seen


@pytest.mark.parametrize(("ranks", "overrides"), LAYOUTS)
def test_the_loss_is_called_once_per_microbatch_in_order(ranks: int, overrides: dict[str, Any]) -> None:
    run = run_config(**overrides)
    batches = training.global_batch(run, 0).tokens[:, 0].split(2)
    seen = [batch for rank in run_ranks(ranks, tokens_seen, run) for batch in rank]
    if "parallel__tensor" in overrides:
        assert seen[:4] == seen[4:]  # both ranks share every sequence
        seen = seen[:4]
    data_size = 2 if "parallel__overlap_communication" in overrides else 1
    expected = [batch.tolist() for rank in range(data_size) for batch in batches[rank::data_size]]
    assert seen == expected
