"""How long a run is and how fast it learns (paper, section 2.2.1: multi-step)."""

from __future__ import annotations

from pydantic import Field, NonNegativeInt, PositiveInt

from megatron_dsmath.config.section import Section


class DropConfig(Section):
    """One step of the multi-step rate."""

    after: float = Field(gt=0, lt=1)
    """The share of the run's steps after which it holds (paper: 0.8, 0.9)."""
    factor: float = Field(gt=0, le=1)
    """The rate from there on, as a share of the peak (paper: 0.316, 0.1)."""


class ScheduleConfig(Section):
    """Linear warm-up to the peak, then constant between drops; no drops is a constant rate."""

    steps: PositiveInt
    """Optimizer steps of the whole run (paper: 500B tokens, 47,684)."""
    sequences_per_step: PositiveInt
    """The global batch, whatever the layout (paper: 10M tokens, 2,560 sequences)."""
    peak_learning_rate: float = Field(gt=0)
    """The rate after warm-up (paper: 4.2e-4)."""
    warmup_steps: NonNegativeInt
    """Steps in which the rate climbs to the peak (paper: 2,000)."""
    drops: tuple[DropConfig, ...]
    """Where the rate falls (paper: 31.6% after 80%, 10% after 90%); empty keeps the peak."""
