"""What a run leaves behind: checkpoints, validation, metrics."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from megatron_dsmath.config.section import Section


class CheckpointConfig(Section):
    """When the state is saved; the last step always is."""

    every_steps: NonNegativeInt
    """Save after this many steps; 0 does not."""
    every_minutes: float = Field(ge=0)
    """Save when this much time has passed since the last one; 0 does not (DeepSeek LLM: 5)."""
    keep: int = Field(ge=2)
    """Newest checkpoints kept; older ones are deleted after a newer one is complete."""


class ValidationConfig(Section):
    """Loss on each corpus' held-out part."""

    every_steps: NonNegativeInt
    """Validate after this many steps and after the last; 0 does not."""
    sequences_per_corpus: PositiveInt
    """Samples of each corpus' held-out part; fewer where it has fewer."""


class TrackingConfig(Section):
    """Where the numbers go; metrics.jsonl is always written."""

    console_every_steps: PositiveInt
    """Print a line after this many steps (where the output is no terminal)."""
    wandb: Literal["auto", "online", "offline", "disabled"]
    """auto: online where a key is found, else offline. W&B's absence or failure never stops a run."""
    wandb_project: str
    """The W&B project; the run's name is its directory's."""
