"""The plan of a fine-tuning run's data: the set, its packing, and the sequences that were skipped.

Packing is computed from these numbers and the set, so nothing else is stored.
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
    """SHA-256 of the files of a set, from its sidecar when the run first opened it."""

    bin: str | None
    targets: str
    labels: str


class ConversationPlan(RunPlan):
    """The packed sequences of a run, numbered through its epochs. A version begins after skipped sequences."""

    arithmetic: Literal[1] = 1
    """Increased when a newer program packs other sequences from the same numbers."""
    seed: NonNegativeInt
    held_out_share: float
    sequence_length: PositiveInt
    packing: Literal["next-fit", "best-fit", "split"]
    prefix: str
    chat_template: str
    """The template of the examples in Jinja, which an exported model contains."""
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
    """The plan of a run with this `config` and its set of `examples`; with an `earlier` plan, the same as that one.

    Raises ConfigError for every key, and DataError for a set, that differs from the earlier plan.
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
    raise_all(list(_differences(plan, earlier)))
    return plan.model_copy(update={"versions": earlier.versions})


def require_same_set(plan: ConversationPlan, examples: Examples) -> None:
    """Raise DataError where the set is not the one of the plan."""
    found = plan.model_copy(update={"examples": len(examples), "sha256": _hashes(examples)})
    raise_all(list(_differences(found, plan)))


def _hashes(examples: Examples) -> SetHashes:
    sha256 = examples.facts["sha256"]
    return SetHashes(bin=bin_sha256(examples.sidecar), targets=sha256["targets"], labels=sha256["labels"])


def _differences(plan: ConversationPlan, earlier: RunPlan) -> Iterator[DsmathError]:
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
            "the conversations have changed since the run started",
            where=f"{plan.prefix}.bin",
            found=_description(plan),
            expected=_description(earlier),
            fix="restore the previous set; for new conversations start a run from this one's weights",
        )


def _refusal(key: str, now: Any, before: Any) -> ConfigError:
    return ConfigError(
        f"a run cannot continue with another {key}, because it changes the packing",
        where=key,
        found=now,
        expected=f"{before}, as when the run started",
        fix="restore it, or output to a new directory, from this run's weights (model.initial_weights)",
    )


def _description(plan: ConversationPlan) -> str:
    hashes = ", ".join(f"{name} {value}" for name, value in plan.sha256.model_dump().items())
    return f"{plan.examples:,} examples, sha256 of {hashes}"
