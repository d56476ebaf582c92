"""All that a run is, beside weights and optimizer: small, plain, and in every checkpoint's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.data.reading import PLAN
from megatron_dsmath.data.run_plan import RunPlan
from megatron_dsmath.training.spikes import Memory


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
    memory: Memory = field(default_factory=Memory)
    """What the guard remembers of the steps before."""

    def after_step(self, run: RunConfig, tokens_by_corpus: Mapping[str, int], memory: Memory) -> State:
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

    def passing_over(self, samples: int, memory: Memory) -> State:
        """The state with the next `samples` passed over, which the plan then says; the run gets no shorter."""
        assert self.plan is not None
        plan = self.plan.skipping(self.next_sample, samples)
        return replace(self, next_sample=self.next_sample + samples, plan=plan, memory=memory)

    def as_dict(self) -> dict[str, Any]:
        """For a manifest."""
        plan = None if self.plan is None else self.plan.model_dump(mode="json")
        return {**asdict(replace(self, plan=None)), "plan": plan}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> State:
        """As a manifest has it. Raises ValueError (pydantic's) for a plan that is none."""
        plan = PLAN.validate_python(facts.get("plan"), strict=False)
        return cls(**{**facts, "plan": plan, "memory": Memory.from_dict(facts.get("memory", {}))})
