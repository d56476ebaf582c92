"""The learning rate of a step: the closed form of each shape of `config.curve`.

The paper's run (section 2.2.1): 2,000 warm-up steps to 4.2e-4, 31.6% of the peak after 80% of the steps, 10% after 90%.
The decays are those of torch's LinearLR, CosineAnnealingLR and ExponentialLR and of transformers' get_wsd_schedule and
get_inverse_sqrt_schedule. `x` is the share of a segment's steps that are completed, from 0 to below 1.
"""

from __future__ import annotations

import math

from megatron_dsmath.config.phases import Segment, segments
from megatron_dsmath.config.sections import RunConfig


def learning_rate(run: RunConfig, step: int) -> float:
    """Return the learning rate of the step after `step` completed steps; that of step 0 is not zero.

    After the end of the run it stays at the last rate.
    """
    every = segments(run)
    for segment in every:
        if segment.first_step <= step < segment.end_step:
            return _rate(segment, step)
    return every[-1].last_rate


def _rate(segment: Segment, step: int) -> float:
    """Return the rate of a step within a segment."""
    done, steps = step - segment.first_step, segment.end_step - segment.first_step
    first, last = segment.first_rate, segment.last_rate
    change, x = last - first, done / steps
    match segment.shape:
        case "constant" | "drop":
            return last
        case "warm up":
            return first + change * (done + 1) / steps  # the last step of a warm-up has the whole rate
        case "linear":
            return first + change * x
        case "cosine":
            return first + change * (1 - math.cos(math.pi * x)) / 2
        case "1-sqrt":
            return first + change * math.sqrt(x)
        case "exponential":
            return float(first * (last / first) ** x)
        case "inverse-sqrt":
            return max(segment.floor, first * math.sqrt(segment.time_scale / (segment.time_scale + done)))
