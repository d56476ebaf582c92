"""The learning rate of a step: linear warm-up, peak, drops (paper, section 2.2.1; DeepSeek LLM, section 2.3).

The paper's run: 2,000 warm-up steps to 4.2e-4, 31.6% of it after 80% of the steps, 10% after 90%.
"""

from __future__ import annotations

from fractions import Fraction

from megatron_dsmath.config.sections import ScheduleConfig


def learning_rate(schedule: ScheduleConfig, step: int) -> float:
    """The rate of the step that follows `step` completed ones, so that step 0 already learns."""
    if step < schedule.warmup_steps:
        return schedule.peak_learning_rate * (step + 1) / schedule.warmup_steps
    factor = 1.0
    for drop in schedule.drops:
        if step >= first_step_after(drop.after, schedule.steps):
            factor = drop.factor
    return schedule.peak_learning_rate * factor


def first_step_after(share: float, steps: int) -> int:
    """Completed steps after which a drop at `share` of the run holds (0.8 of 47,684: 38,147).

    In fractions of the number as it is written: 0.7 x 10 is 7, where floating point makes it 6.999...
    """
    return int(Fraction(str(share)) * steps)
