"""All that a run is, beside weights and optimizer: small, plain, and in every checkpoint's manifest."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.data.audit.run_batches import PLAN_ADAPTER
from megatron_dsmath.data.mixture.run_plan import RunPlan

WINDOW_STEPS = 128
LEAST_STEPS = 64
SIGMAS = 6.0


@dataclass(frozen=True)
class SpikeWindow:
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

    def after_step(self, loss: float, gradient_norm: float, spiked: bool) -> SpikeWindow:
        """Once a step with these numbers is applied."""
        return replace(
            self,
            losses=(*self.losses, loss)[-WINDOW_STEPS:],
            gradient_norms=(*self.gradient_norms, gradient_norm)[-WINDOW_STEPS:],
            spikes=self.spikes + spiked,
        )

    def after_rejection(self, step: int, spiked: bool) -> SpikeWindow:
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
    def from_dict(cls, facts: Mapping[str, Any]) -> SpikeWindow:
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


@dataclass(frozen=True)
class State:
    """Where a run stands between two steps."""

    step: int = 0
    """Completed optimizer steps."""
    next_sample: int = 0
    """The number of the first sample not yet trained on; with the plan the whole state of the data."""
    plan: RunPlan | None = None
    """What the run reads, version by version; None before its first start."""
    consumed_tokens: int = 0
    """Tokens trained on, `sequence_length` a sample."""
    tokens_by_corpus: Mapping[str, int] = field(default_factory=dict)
    """The same by corpus, as they were counted in the loss."""
    memory: SpikeWindow = field(default_factory=SpikeWindow)
    """What the guard remembers of the steps before."""

    def after_step(self, run: RunConfig, tokens_by_corpus: Mapping[str, int], memory: SpikeWindow) -> State:
        """The state once one more step, with these tokens, is done; `memory` is the guard's after it."""
        return replace(
            self,
            step=self.step + 1,
            next_sample=self.next_sample + run.schedule.sequences_per_step,
            consumed_tokens=self.consumed_tokens + run.tokens_per_step,
            tokens_by_corpus={
                name: tokens + self.tokens_by_corpus.get(name, 0) for name, tokens in tokens_by_corpus.items()
            },
            memory=memory,
        )

    def passing_over(self, samples: int, memory: SpikeWindow) -> State:
        """The state with the next `samples` passed over, which the plan then says; the run gets no shorter."""
        assert self.plan is not None
        plan = self.plan.with_skipped(self.next_sample, samples)
        return replace(self, next_sample=self.next_sample + samples, plan=plan, memory=memory)

    def as_dict(self) -> dict[str, Any]:
        """For a manifest."""
        plan = None if self.plan is None else self.plan.model_dump(mode="json")
        return {**asdict(replace(self, plan=None)), "plan": plan}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> State:
        """As a manifest has it. Raises ValueError (pydantic's) for a plan that is none."""
        plan = PLAN_ADAPTER.validate_python(facts.get("plan"), strict=False)
        return cls(**{**facts, "plan": plan, "memory": SpikeWindow.from_dict(facts.get("memory", {}))})
