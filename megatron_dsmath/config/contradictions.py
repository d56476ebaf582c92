"""Values that are each fine and cannot stand together: found before any process starts.

Each rule is a generator of errors. A rule that needs a value which is itself mistaken cannot be judged yet: it meets
an AttributeError on the half-built run and is passed over (`config.load`).
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_dsmath.config.layout_contradictions import LAYOUT_RULES, Rule
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.errors import ConfigError


def sequences_fit_the_positions(run: RunConfig) -> Iterator[ConfigError]:
    """A model that announces fewer positions than it was trained on misleads its users."""
    if run.data.sequence_length > run.model.max_position_embeddings:
        yield ConfigError(
            "the sequences are longer than the positions the model announces",
            where="data.sequence_length",
            found=f"{run.data.sequence_length}, model.max_position_embeddings {run.model.max_position_embeddings}",
            expected="at most model.max_position_embeddings",
            fix=f"set model.max_position_embeddings: {run.data.sequence_length}",
        )


def documents_are_kept_apart_by_our_kernels(run: RunConfig) -> Iterator[ConfigError]:
    """TransformerEngine's layers are not told where documents lie."""
    if not run.data.attend_across_documents and run.model.kernels == "transformer_engine":
        yield ConfigError(
            "TransformerEngine's attention would cross the documents of a sample",
            where="data.attend_across_documents",
            found="false, model.kernels transformer_engine",
            expected="true, or model.kernels torch",
            fix="set model.kernels: torch, which uses torch's flash kernel for documents of varying length",
        )


def a_run_reads_one_kind_of_data(run: RunConfig) -> Iterator[ConfigError]:
    """Pretraining reads a mixture of corpora, fine-tuning a set of conversations."""
    corpora, conversations = run.data.corpora, run.data.conversations
    if bool(corpora) == bool(conversations):
        yield ConfigError(
            "a run reads corpora or conversations, one of the two",
            where="data.conversations" if corpora else "data.corpora",
            found="both" if corpora else "neither",
            expected="entries under data.corpora, or data.conversations with a prefix",
            fix="set data.conversations: null, or data.corpora: []" if corpora else "name the data to train on",
        )


def corpora_have_names_of_their_own(run: RunConfig) -> Iterator[ConfigError]:
    """Metrics are told apart by the corpus' name."""
    names = [corpus.name for corpus in run.data.corpora]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield ConfigError(
                "two corpora have one name",
                where=f"data.corpora.{index}.name",
                found=name,
                expected="a name of its own",
                fix=f"rename it, or add its paths to data.corpora.{names.index(name)}.paths",
            )


def drops_come_in_order(run: RunConfig) -> Iterator[ConfigError]:
    """The rate falls from one drop to the next, and the warm-up ends within the run."""
    schedule = run.schedule
    if schedule.warmup_steps > schedule.steps:
        yield ConfigError(
            "the run ends before its warm-up",
            where="schedule.warmup_steps",
            found=f"{schedule.warmup_steps}, schedule.steps {schedule.steps}",
            expected="at most schedule.steps",
            fix="shorten the warm-up or lengthen the run",
        )
    for index, (first, second) in enumerate(zip(schedule.drops, schedule.drops[1:], strict=False)):
        if second.after <= first.after:
            yield ConfigError(
                "the drops of the learning rate are not in order",
                where=f"schedule.drops.{index + 1}.after",
                found=f"{second.after} after {first.after}",
                expected="a later share of the run than the drop before",
                fix="sort schedule.drops by `after`",
            )
        if second.factor > first.factor:
            yield ConfigError(
                "a drop raises the learning rate",
                where=f"schedule.drops.{index + 1}.factor",
                found=f"{second.factor} after {first.factor}",
                expected="at most the factor of the drop before; each is a share of the peak",
                fix="write shares of the peak, the largest first",
            )


def rewinding_has_a_checkpoint_to_reach(run: RunConfig) -> Iterator[ConfigError]:
    """Where the guard goes back, one of the checkpoints that are kept is always old enough."""
    guard, saving = run.guard, run.checkpoint
    policies = {"guard.non_finite": guard.non_finite, "guard.spike": guard.spike}
    key = next((key for key, policy in policies.items() if policy == "rewind"), None)
    if key is None:
        return
    if not saving.every_steps:
        yield ConfigError(
            "the guard is to go back to a checkpoint, and none is saved at a known step",
            where=key,
            found="rewind, checkpoint.every_steps 0",
            expected="checkpoint.every_steps of 1 or more",
            fix="set checkpoint.every_steps, or pass over such data without going back: skip",
        )
    elif guard.rewind_steps > (saving.keep - 1) * saving.every_steps:  # the newest may be of the very last step
        needed = 1 - (-guard.rewind_steps // saving.every_steps)
        yield ConfigError(
            "the guard is to go back further than the checkpoints that are kept",
            where="guard.rewind_steps",
            found=f"{guard.rewind_steps}, checkpoint.keep {saving.keep}, checkpoint.every_steps {saving.every_steps}",
            expected=f"at most {(saving.keep - 1) * saving.every_steps} steps: (keep - 1) x every_steps",
            fix=f"for example checkpoint.keep: {needed}",
        )


RULES: tuple[Rule, ...] = (
    *LAYOUT_RULES,
    sequences_fit_the_positions,
    documents_are_kept_apart_by_our_kernels,
    a_run_reads_one_kind_of_data,
    corpora_have_names_of_their_own,
    drops_come_in_order,
    rewinding_has_a_checkpoint_to_reach,
)
