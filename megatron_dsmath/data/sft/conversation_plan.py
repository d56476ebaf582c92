"""What a fine-tuning run reads: which set, packed how, and which of its sequences were passed over.

Who stands beside whom follows from these numbers and the set, so that nothing else has to be stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from megatron_dsmath.config.sections import DataConfig, Section
from megatron_dsmath.data.indexed.sidecar import bin_sha256
from megatron_dsmath.data.mixture.run_plan import Count, RunPlan, VersionStart, require_order
from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.errors import ConfigError, DataError, DsmathError, raise_all


class SetHashes(Section):
    """SHA-256 of the files of a set, as its sidecar told when the run first opened it."""

    bin: str | None
    targets: str
    labels: str


class ConversationPlan(RunPlan):
    """The packed sequences of a run, numbered through its epochs; a version begins where some were passed over."""

    arithmetic: Literal[1] = 1
    """Raised when a newer program would pack other sequences from the same numbers."""
    seed: NonNegativeInt
    held_out_share: float
    sequence_length: PositiveInt
    packing: Literal["next-fit", "best-fit", "split"]
    prefix: str
    chat_template: str
    """That its examples were written with, in Jinja: an exported model carries it."""
    end_of_answer: NonNegativeInt
    """The token that ends an answer."""
    examples: Count
    sha256: SetHashes
    versions: tuple[VersionStart, ...]

    @model_validator(mode="after")
    def _require_consistency(self) -> ConversationPlan:
        require_order(self.versions)
        return self

    def with_skipped(self, next_sample: int, samples: int) -> ConversationPlan:
        """See `RunPlan`."""
        version = VersionStart(first_sample=next_sample + samples, skipped_samples=samples)
        return self.model_copy(update={"versions": (*self.versions, version)})


def plan_conversations(
    config: DataConfig, seed: int, examples: Examples, earlier: RunPlan | None = None
) -> ConversationPlan:
    """The plan of a run with this `config` over its set of `examples`, or the `earlier` one, which cannot change.

    Raises ConfigError for a key that is not the earlier plan's, DataError for a set that is not, all at once.
    """
    assert config.conversations is not None
    plan = ConversationPlan(
        seed=seed,
        held_out_share=config.held_out_share,
        sequence_length=config.sequence_length,
        packing=config.conversations.packing,
        prefix=config.conversations.prefix,
        chat_template=examples.facts["chat_template"],
        end_of_answer=examples.facts["end_of_answer"],
        examples=len(examples),
        sha256=_hashes(examples),
        versions=(VersionStart(first_sample=0, skipped_samples=0),),
    )
    if earlier is None:
        return plan
    raise_all(list(_what_changed(plan, earlier)))
    return plan.model_copy(update={"versions": earlier.versions})


def require_same_set(plan: ConversationPlan, examples: Examples) -> None:
    """Raise DataError where the set is not the one of the plan."""
    found = plan.model_copy(update={"examples": len(examples), "sha256": _hashes(examples)})
    raise_all(list(_what_changed(found, plan)))


def _hashes(examples: Examples) -> SetHashes:
    beside = examples.facts["sha256"]
    return SetHashes(bin=bin_sha256(examples.sidecar), targets=beside["targets"], labels=beside["labels"])


def _what_changed(plan: ConversationPlan, earlier: RunPlan) -> Iterator[DsmathError]:
    if not isinstance(earlier, ConversationPlan):
        yield _refusal("data.conversations", "conversations", "a mixture of corpora")
        return
    keys = ("seed", "data.held_out_share", "data.sequence_length", "data.conversations.packing")
    for key in keys:
        now, before = (getattr(one, key.rpartition(".")[2]) for one in (plan, earlier))
        if now != before:
            yield _refusal(key, now, before)
    if (plan.examples, plan.sha256) != (earlier.examples, earlier.sha256):
        yield DataError(
            "the conversations were changed since the run first read them",
            where=f"{plan.prefix}.bin",
            found=_description(plan),
            expected=_description(earlier),
            fix="put the former set back; for new conversations begin a run from this one's weights",
        )


def _refusal(key: str, now: Any, before: Any) -> ConfigError:
    return ConfigError(
        f"a run cannot go on with another {key}: it decides who is packed with whom",
        where=key,
        found=now,
        expected=f"{before}, as the run began",
        fix="restore it, or output to a new directory, from this run's weights (model.initial_weights)",
    )


def _description(plan: ConversationPlan) -> str:
    hashes = ", ".join(f"{name} {value}" for name, value in plan.sha256.model_dump().items())
    return f"{plan.examples:,} examples, sha256 of {hashes}"
