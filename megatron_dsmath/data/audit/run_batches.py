"""What a run reads, whichever it is: a mixture of corpora or packed conversations. Training knows only this much."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Protocol

from pydantic import Discriminator, Tag, TypeAdapter

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.data.mixture.corpus_shards import Shards
from megatron_dsmath.data.mixture.microbatch import Microbatch
from megatron_dsmath.data.mixture.mixture_batches import MixtureBatches
from megatron_dsmath.data.mixture.mixture_plan import MixturePlan
from megatron_dsmath.data.mixture.mixture_planning import plan_run
from megatron_dsmath.data.mixture.run_plan import RunPlan
from megatron_dsmath.data.sft.conversation_batches import PackedBatches
from megatron_dsmath.data.sft.conversation_plan import ConversationPlan, plan_conversations
from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.errors import ConfigError


class RunBatches(Protocol):
    """What a run reads, opened; nothing it says depends on ranks, microbatches or machine."""

    @property
    def group_names(self) -> tuple[str, ...]:
        """Of the groups by which a loss is told: corpora; or kinds, languages and sources of conversations."""

    @property
    def plan(self) -> RunPlan:
        """The plan that is followed."""

    def with_plan(self, plan: Any) -> RunBatches:
        """The same by a later plan of the same kind."""

    def step_batches(
        self, first_sample: int, samples: int, microbatch_sequences: int, data_rank: int, data_size: int
    ) -> Sequence[Microbatch]:
        """A rank's microbatches of the step over the `samples` from `first_sample` on."""

    def validation_batches(
        self, sequences: int, microbatch_sequences: int, data_rank: int, data_size: int
    ) -> Sequence[Microbatch]:
        """A rank's microbatches of what is held out; every rank gets equally many."""

    def validation_loss(self, whole: float, by_name: Mapping[str, float | None]) -> float:
        """What is comparable with the training loss: of `whole`, over all held-out targets, and the parts by name."""

    def epochs(self, sample: int) -> dict[str, float]:
        """How often what is behind each name was read before `sample`."""

    def passages(self, sample: int) -> Iterator[dict[str, Any]]:
        """What a sample holds and where it lies, as a report writes it."""


def open_batches(
    run: RunConfig, fingerprint: str, end_sample: int, earlier: RunPlan | None, next_sample: int
) -> RunBatches:
    """Open and plan what the run reads from `next_sample` to `end_sample` with the tokenizer of this `fingerprint`.

    Raises as `planning.plan_run`, and for conversations as `Examples`, `plan_conversations` and `PackedBatches`.
    """
    shards, vocabulary_size = Shards(fingerprint), run.model.vocabulary_size
    if run.data.conversations is not None:
        shards.open(run.data.conversations.prefix)  # whole, and of the tokenizer
        examples = Examples(run.data.conversations.prefix)
        return PackedBatches(plan_conversations(run.data, run.seed, examples, earlier), examples, vocabulary_size)
    if earlier is not None and not isinstance(earlier, MixturePlan):
        raise ConfigError(
            "a run cannot go on with a mixture of corpora",
            where="data.corpora",
            found="corpora",
            expected="conversations, as the run began",
            fix="restore data.conversations, or output to a new directory",
        )
    return MixtureBatches(
        plan_run(run.data, run.seed, shards, end_sample, earlier, next_sample), shards, vocabulary_size
    )


def _kind_of_plan(facts: Any) -> str:
    return "conversations" if isinstance(facts, Mapping) and "packing" in facts else "mixture"


# Reads a plan of either kind, as a manifest or a ledger has it. Raises ValidationError for what is none.
PLAN_ADAPTER: TypeAdapter[MixturePlan | ConversationPlan] = TypeAdapter(
    Annotated[
        Annotated[MixturePlan, Tag("mixture")] | Annotated[ConversationPlan, Tag("conversations")],
        Discriminator(_kind_of_plan),
    ]
)
