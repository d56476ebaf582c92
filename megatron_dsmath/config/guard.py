"""What a run does when its numbers go wrong or a process stops moving."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from megatron_dsmath.config.section import Section


class GuardConfig(Section):
    """When a step is not applied, and how long a process may stand still."""

    non_finite: Literal["stop", "skip", "rewind"]
    """On a loss or gradient that is NaN or infinite: stop, pass over the step's data, or go back as well."""
    spike: Literal["flag", "skip", "rewind"]
    """On a loss or gradient norm far above those before it (record 21): say so in the metrics, or act as above."""
    rewind_steps: PositiveInt
    """How far back `rewind` goes at least, to a checkpoint; the data between is passed over (PaLM: about 100)."""
    verify_every_steps: NonNegativeInt
    """Every so many steps one is computed twice and compared bit for bit, to find a machine that computes wrong; 0:
    never (record 28). Costs a step's time each time."""
    setup_timeout_seconds: float = Field(gt=0)
    """How long no process may stand still before the first step is done."""
    step_timeout_seconds: float = Field(gt=0)
    """The same later, within a step or a validation, unless ten times the median step is longer."""
    save_timeout_seconds: float = Field(gt=0)
    """The same within a save or an evaluation, and at the run's end."""
