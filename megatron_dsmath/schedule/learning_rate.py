"""The multi-step learning rate: linear warm-up, peak, drops (paper, section 2.2.1; DeepSeek LLM, section 2.3).

The paper's run: 2,000 warm-up steps to 4.2e-4, 31.6% of the peak after 80% of the steps, 10% after 90%.
"""

from __future__ import annotations

from fractions import Fraction

from megatron_dsmath.config.sections import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, step: int) -> float:
    """Return the learning rate of the step after `step` completed steps; that of step 0 is not zero."""
    if step < schedule.warmup_steps:
        return schedule.peak_learning_rate * (step + 1) / schedule.warmup_steps
    factor = 1.0
    for drop in schedule.drops:
        if step >= first_step_after(drop.after, schedule.steps):
            factor = drop.factor
    return schedule.peak_learning_rate * factor


def first_step_after(share: float, steps: int) -> int:
    """Return the number of completed steps after which a drop at `share` of the run applies (0.8 of 47,684: 38,147).

    Computed with exact decimal fractions: 0.7 x 10 is 7, not 6.999... as in floating point.
    """
    return int(Fraction(str(share)) * steps)
