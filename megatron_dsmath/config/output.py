"""What a run leaves behind: checkpoints, validation, metrics."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from megatron_dsmath.config.section import Section

AllowedChange = Literal[
    "seed",
    "schedule.sequences_per_step",
    "data.tokenizer",
    "data.sequence_length",
    "data.attend_across_documents",
    "data.corpora",
    "data.held_out_share",
]


class CheckpointConfig(Section):
    """When the state is saved; the last step always is."""

    every_steps: NonNegativeInt
    """Save after this many steps; 0 does not."""
    every_minutes: float = Field(ge=0)
    """Save when this much time has passed since the last one; 0 does not (DeepSeek LLM: 5)."""
    keep: int = Field(ge=2)
    """Newest checkpoints kept; older ones are deleted after a newer one is complete."""
    asynchronous: bool
    """Train on while a checkpoint is written: a step waits for a copy in memory, which takes as much of it."""
    max_failures: NonNegativeInt
    """Saves in a row that a full or failing disk may spoil while training goes on; one more ends the run."""
    allowed_changes: tuple[AllowedChange, ...]
    """Keys whose change since the checkpoint is meant: of those that decide what is learned from which tokens."""


class ValidationConfig(Section):
    """Loss on what is held out."""

    every_steps: NonNegativeInt
    """Validate after this many steps and after the last; 0 does not."""
    sequences_per_corpus: PositiveInt
    """Samples of each corpus' held-out part, or of the held-out conversations; fewer where there are fewer."""


class TrackingConfig(Section):
    """Where the numbers go; metrics.jsonl is always written."""

    console_every_steps: PositiveInt
    """Print a line after this many steps (where the output is no terminal)."""
    wandb: Literal["auto", "online", "offline", "disabled"]
    """auto: online where a key is found, else offline. W&B's absence or failure never stops a run."""
    wandb_project: str
    """The W&B project; the run's name is its directory's."""
