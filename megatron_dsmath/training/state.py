"""All that a run is, beside weights and optimizer: small, plain, and in every checkpoint's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.data.mixture.plan import Plan


@dataclass(frozen=True)
class State:
    """Where a run stands between two steps."""

    step: int = 0
    """Completed optimizer steps."""
    next_sample: int = 0
    """The number of the first sample not yet trained on; with the plan the whole state of the data."""
    plan: Plan | None = None
    """What the run reads, version by version; None before its first start."""
    consumed_tokens: int = 0
    """Tokens trained on, `sequence_length` a sample."""
    tokens_by_corpus: Mapping[str, int] = field(default_factory=dict)
    """The same by corpus, as they were counted in the loss."""

    def after_step(self, run: RunConfig, tokens_by_corpus: Mapping[str, int]) -> State:
        """The state once one more step, with these tokens, is done."""
        return replace(
            self,
            step=self.step + 1,
            next_sample=self.next_sample + run.schedule.sequences_per_step,
            consumed_tokens=self.consumed_tokens + run.tokens_per_step,
            tokens_by_corpus={
                name: tokens + self.tokens_by_corpus.get(name, 0) for name, tokens in tokens_by_corpus.items()
            },
        )

    def as_dict(self) -> dict[str, Any]:
        """For a manifest."""
        plan = None if self.plan is None else self.plan.model_dump(mode="json")
        return {**asdict(replace(self, plan=None)), "plan": plan}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any]) -> State:
        """As a manifest has it. Raises ValueError (pydantic's) for a plan that is none."""
        return cls(**{**facts, "plan": Plan.model_validate(facts.get("plan"), strict=False)})
