"""The batches of a run, of a mixture or of conversations: the only interface through which training reads data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Protocol

from pydantic import Discriminator, Tag, TypeAdapter

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.data.mixture.corpus_shards import Shards
from megatron_dsmath.data.mixture.microbatch import Microbatch
from megatron_dsmath.data.mixture.mixture_batches import MixtureBatches
from megatron_dsmath.data.mixture.mixture_plan import MixturePlan
from megatron_dsmath.data.mixture.mixture_planning import MixturePhase, plan_run
from megatron_dsmath.data.mixture.permutation import IntArray
from megatron_dsmath.data.mixture.run_plan import RunPlan
from megatron_dsmath.data.mixture.samples import Passage
from megatron_dsmath.data.sft.conversation_batches import PackedBatches
from megatron_dsmath.data.sft.conversation_plan import ConversationPlan, plan_conversations, require_same_set
from megatron_dsmath.data.sft.examples import Examples, labels_path, targets_path
from megatron_dsmath.errors import ConfigError, DataError
from megatron_dsmath.files.atomic_files import file_sha256


class RunBatches(Protocol):
    """The open data of a run. Plan, samples and hashes do not depend on ranks, microbatches or the machine."""

    @property
    def group_names(self) -> tuple[str, ...]:
        """The names of the groups by which a loss is reported: corpora, or kinds, languages and sources."""

    @property
    def plan(self) -> RunPlan:
        """The plan of the run."""

    def with_plan(self, plan: Any) -> RunBatches:
        """Return the same data with a later plan of the same type."""

    def step_batches(
        self, first_sample: int, samples: int, microbatch_sequences: int, data_rank: int, data_size: int
    ) -> Sequence[Microbatch]:
        """Return a rank's microbatches of the step that reads `samples` samples from `first_sample` on."""

    def validation_batches(
        self, sequences: int, microbatch_sequences: int, data_rank: int, data_size: int
    ) -> Sequence[Microbatch]:
        """Return a rank's microbatches of held-out sequences; every rank gets equally many."""

    def validation_loss(self, sample: int, whole: float, by_name: Mapping[str, float | None]) -> float:
        """Return the loss comparable with the training before `sample`.

        `whole` is the mean over all targets, `by_name` the means of the groups.
        """

    def epochs(self, sample: int) -> dict[str, float]:
        """Return how often each group was read before `sample`."""

    def passages(self, sample: int) -> Iterator[dict[str, Any]]:
        """Yield the contents of a sample and their locations, for reports."""

    def read_passages(self, sample: int) -> Iterator[tuple[str, Passage]]:
        """Yield the corpus or source of each document or example of a sample, and its tokens there, in order."""

    def tokens(self, samples: IntArray) -> IntArray:
        """Read the tokens of samples of one version, int64 [n]: int64 [n, sequence_length + 1].

        Raises IndexedDatasetError for a token beyond the vocabulary.
        """


def open_batches(
    run: RunConfig, fingerprint: str, phases: Sequence[MixturePhase], earlier: RunPlan | None, next_sample: int
) -> RunBatches:
    """Plan and open the data of a run from `next_sample` on; `fingerprint` is that of its tokenizer.

    `phases`: what is left of the current phase, and the later ones. Raises as `plan_run`, and for conversations as
    `Examples`, `plan_conversations` and `PackedBatches`.
    """
    shards, vocabulary_size = Shards(fingerprint), run.model.vocabulary_size
    if run.data.conversations is not None:
        shards.open(run.data.conversations.prefix)  # checks the files and the tokenizer
        examples = Examples(run.data.conversations.prefix)
        return PackedBatches(plan_conversations(run.data, run.seed, examples, earlier), examples, vocabulary_size)
    if earlier is not None and not isinstance(earlier, MixturePlan):
        raise ConfigError(
            "a run on conversations cannot continue with a mixture of corpora",
            where="data.corpora",
            found="corpora",
            expected="conversations, as at the start of the run",
            fix="restore data.conversations, or use a new output directory",
        )
    plan = plan_run(run.data, run.seed, shards, phases, earlier, next_sample)
    return MixtureBatches(plan, shards, vocabulary_size, [corpus.name for corpus in run.data.corpora])


def open_recorded_batches(plan: RunPlan, fingerprint: str | None, vocabulary_size: int) -> RunBatches:
    """Open the data of a recorded plan. The data must be of the tokenizer `fingerprint`; None accepts any.

    Raises as `Shards.open_planned` and `Examples`, and DataError if the conversations were changed.
    """
    shards = Shards(fingerprint)
    if isinstance(plan, MixturePlan):
        return MixtureBatches(plan, shards, vocabulary_size)
    assert isinstance(plan, ConversationPlan)
    shards.open(plan.prefix)
    examples = Examples(plan.prefix)
    require_same_set(plan, examples)
    # Masks and labels; the hashes of the steps check the tokens.
    recorded = {targets_path(plan.prefix): plan.sha256.targets, labels_path(plan.prefix): plan.sha256.labels}
    for path, expected in recorded.items():
        if (found := file_sha256(path)) != expected:
            raise DataError(
                "a file was changed since the run read it",
                where=path,
                found=f"sha256 {found}",
                expected=f"sha256 {expected}",
                fix="restore the original file",
            )
    return PackedBatches(plan, examples, vocabulary_size)


def _kind_of_plan(facts: Any) -> str:
    return "conversations" if isinstance(facts, Mapping) and "packing" in facts else "mixture"


# Validates a plan of either type from a manifest or a ledger. Raises ValidationError.
PLAN_ADAPTER: TypeAdapter[MixturePlan | ConversationPlan] = TypeAdapter(
    Annotated[
        Annotated[MixturePlan, Tag("mixture")] | Annotated[ConversationPlan, Tag("conversations")],
        Discriminator(_kind_of_plan),
    ]
)
