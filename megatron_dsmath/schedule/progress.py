"""Steps, samples and tokens: one is a function of the other (10,485,760 tokens a step in the paper's run)."""

from __future__ import annotations

from megatron_dsmath.config.run import RunConfig


def samples_after(run: RunConfig, step: int) -> int:
    """Samples consumed by `step` completed steps; also the number of the next sample."""
    return step * run.schedule.sequences_per_step


def tokens_after(run: RunConfig, step: int) -> int:
    """Tokens consumed by `step` completed steps, `sequence_length` a sample."""
    return step * run.tokens_per_step
