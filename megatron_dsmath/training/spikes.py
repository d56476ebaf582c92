"""How far a step's loss and gradient norm lie from those before it, and what is remembered of them.

The rule is OLMo-core's (`optim/skip_step_optimizer.py`): 6 standard deviations over the last 128 steps, once half of
them are there. Theirs also counts numbers that are too small; a fall is no spike here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

WINDOW_STEPS = 128
LEAST_STEPS = 64
SIGMAS = 6.0


@dataclass(frozen=True)
class Memory:
    """What the guard knows of the steps before: in every checkpoint, so that a resumed run judges alike."""

    losses: tuple[float, ...] = ()
    gradient_norms: tuple[float, ...] = ()
    """The last WINDOW_STEPS of each."""
    spikes: int = 0
    """Steps above the limit since the first."""
    rejected_steps: int = 0
    """Steps that were not applied, since the first."""
    rejected_after: int = -1
    """After how many completed steps the last of them stood."""
    rejected_there: int = 0
    """How many stood there, or before it since then: what was tried without getting further."""

    def sigmas(self, loss: float, gradient_norm: float) -> tuple[float | None, float | None]:
        """Standard deviations above the window's mean, for both; None while the window is too short or constant."""
        return _sigmas(loss, self.losses), _sigmas(gradient_norm, self.gradient_norms)

    def after_step(self, loss: float, gradient_norm: float, spiked: bool) -> Memory:
        """Once a step with these numbers is applied."""
        return replace(
            self,
            losses=(*self.losses, loss)[-WINDOW_STEPS:],
            gradient_norms=(*self.gradient_norms, gradient_norm)[-WINDOW_STEPS:],
            spikes=self.spikes + spiked,
        )

    def after_rejection(self, step: int, spiked: bool) -> Memory:
        """Once the step that follows `step` completed ones was not applied; its numbers are forgotten."""
        again = step <= self.rejected_after
        return replace(
            self,
            spikes=self.spikes + spiked,
            rejected_steps=self.rejected_steps + 1,
            rejected_after=max(step, self.rejected_after),
            rejected_there=self.rejected_there + 1 if again else 1,
        )

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> Memory:
        """As a manifest has it. Raises TypeError for other names."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in facts.items()
        }
        return cls(**values)


def _sigmas(value: float, window: Sequence[float]) -> float | None:
    if len(window) < LEAST_STEPS:
        return None
    mean = math.fsum(window) / len(window)
    deviation = math.sqrt(math.fsum((other - mean) ** 2 for other in window) / (len(window) - 1))
    return (value - mean) / deviation if deviation else None
