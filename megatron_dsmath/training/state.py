"""The state of a run other than weights and optimizer; every checkpoint's manifest holds it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from megatron_dsmath.config.phases import phase_at
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.data.audit.run_batches import PLAN_ADAPTER
from megatron_dsmath.data.mixture.run_plan import RunPlan

WINDOW_STEPS = 128
LEAST_STEPS = 64  # a shorter window gives no standard deviation
SIGMAS = 6.0  # a loss or gradient norm further above the mean is a spike


@dataclass(frozen=True)
class SpikeWindow:
    """The recent losses and gradient norms, and the counts of spikes and rejected steps (`guard`)."""

    losses: tuple[float, ...] = ()  # the last WINDOW_STEPS
    gradient_norms: tuple[float, ...] = ()  # the last WINDOW_STEPS
    spikes: int = 0  # since the first step of the run
    rejected_steps: int = 0  # since the first step of the run
    rejected_after: int = -1  # completed steps before the furthest rejected step
    rejected_there: int = 0  # rejections of that step, which has not been completed since

    def sigmas(self, loss: float, gradient_norm: float) -> tuple[float | None, float | None]:
        """Standard deviations of each above the window's mean; None while the window is too short or constant."""
        return _sigmas(loss, self.losses), _sigmas(gradient_norm, self.gradient_norms)

    def after_step(self, loss: float, gradient_norm: float, spiked: bool) -> SpikeWindow:
        """The window after a step with these numbers is applied."""
        return replace(
            self,
            losses=(*self.losses, loss)[-WINDOW_STEPS:],
            gradient_norms=(*self.gradient_norms, gradient_norm)[-WINDOW_STEPS:],
            spikes=self.spikes + spiked,
        )

    def after_rejection(self, step: int, spiked: bool) -> SpikeWindow:
        """The window after the step that follows `step` completed steps is rejected; its numbers are not kept."""
        again = step <= self.rejected_after
        return replace(
            self,
            spikes=self.spikes + spiked,
            rejected_steps=self.rejected_steps + 1,
            rejected_after=max(step, self.rejected_after),
            rejected_there=self.rejected_there + 1 if again else 1,
        )


def _sigmas(value: float, window: Sequence[float]) -> float | None:
    if len(window) < LEAST_STEPS:
        return None
    mean = math.fsum(window) / len(window)
    deviation = math.sqrt(math.fsum((other - mean) ** 2 for other in window) / (len(window) - 1))
    return (value - mean) / deviation if deviation else None


@dataclass(frozen=True)
class State:
    """The state of a run between two steps."""

    step: int = 0  # completed optimizer steps
    next_sample: int = 0  # the first sample that is not trained on yet; with the plan it is the state of the data
    plan: RunPlan | None = None  # of the run's data with all its versions; None before the first start
    consumed_tokens: int = 0  # tokens trained on, `sequence_length` per sample
    tokens_by_corpus: Mapping[str, int] = field(default_factory=dict)  # target tokens that were counted in the loss
    spike_window: SpikeWindow = field(default_factory=SpikeWindow)  # `memory` in a manifest

    def after_step(self, run: RunConfig, tokens_by_corpus: Mapping[str, int], spike_window: SpikeWindow) -> State:
        """The state after one more step with these tokens; `spike_window` includes the step."""
        phase = phase_at(run, self.step)
        return replace(
            self,
            step=self.step + 1,
            next_sample=self.next_sample + phase.sequences_per_step,
            consumed_tokens=self.consumed_tokens + phase.tokens_per_step,
            tokens_by_corpus={
                name: tokens + self.tokens_by_corpus.get(name, 0) for name, tokens in tokens_by_corpus.items()
            },
            spike_window=spike_window,
        )

    def skipping(self, samples: int, spike_window: SpikeWindow) -> State:
        """The state with the next `samples` skipped, which its plan records; the number of steps stays the same."""
        assert self.plan is not None
        plan = self.plan.with_skipped(self.next_sample, samples)
        return replace(self, next_sample=self.next_sample + samples, plan=plan, spike_window=spike_window)

    def as_dict(self) -> dict[str, Any]:
        """The entries of a manifest."""
        facts = asdict(replace(self, plan=None))
        facts["plan"] = None if self.plan is None else self.plan.model_dump(mode="json")
        facts["memory"] = facts.pop("spike_window")
        return facts

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> State:
        """Read the entries of a manifest. Raises TypeError for unknown names and ValueError for an invalid plan."""
        plan = PLAN_ADAPTER.validate_python(facts.get("plan"), strict=False)
        memory = facts.get("memory", {}).items()
        window: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in memory}
        others = {name: value for name, value in facts.items() if name not in ("plan", "memory")}
        return cls(**others, plan=plan, spike_window=SpikeWindow(**window))
