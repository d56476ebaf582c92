"""Typical errors of parallel code, planted in a rank to show that a comparison detects them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.parallel.attention import CoreAttention
from tests.support import training
from tests.support.training import Figures
from tests.verify_layouts.planted_faults import (
    gradients_stay_on_their_rank,
    microbatches_are_averaged,
    norm_gradients_are_not_summed,
    norms_decay,
    parts_of_matrices_count_as_copies,
    stages_load_the_first_layers,
)

__all__ = [
    "gradients_stay_on_their_rank",
    "microbatches_are_averaged",
    "middle_stages_see_no_documents",
    "norm_gradients_are_not_summed",
    "norms_decay",
    "parts_of_matrices_count_as_copies",
    "stages_load_the_first_layers",
    "train_with",
]


def train_with(fault: Callable[[], None], run: RunConfig, weights: Path, steps: int) -> list[Figures]:
    """`training.train` with one planted error."""
    fault()
    return training.train(run, weights, steps)


def middle_stages_see_no_documents() -> None:
    """Only the first and the last stage get document bounds, as only they get tokens and labels."""
    attend = CoreAttention.forward

    def at_the_ends(self: CoreAttention, *states: torch.Tensor, **named: Any) -> torch.Tensor:
        last = parallel_state.get_pipeline_model_parallel_world_size() - 1
        at_an_end = parallel_state.get_pipeline_model_parallel_rank() in (0, last)
        query, key, value, bounds = states
        return attend(self, query, key, value, bounds if at_an_end else None, **named)

    CoreAttention.forward = at_the_ends  # type: ignore[method-assign, assignment]
