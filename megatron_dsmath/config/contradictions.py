"""Rules about values that contradict each other, checked before any process starts.

Each rule is a generator of errors. In a file with invalid values a rule may raise AttributeError for a value that it
needs; `config.load` ignores it there.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_dsmath.config.layout_contradictions import LAYOUT_RULES, Rule
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.errors import ConfigError


def check_sequence_length(run: RunConfig) -> Iterator[ConfigError]:
    """The exported configuration must not announce fewer positions than the model was trained on."""
    if run.data.sequence_length > run.model.max_position_embeddings:
        yield ConfigError(
            "the sequences are longer than model.max_position_embeddings",
            where="data.sequence_length",
            found=f"{run.data.sequence_length}, model.max_position_embeddings {run.model.max_position_embeddings}",
            expected="at most model.max_position_embeddings",
            fix=f"set model.max_position_embeddings: {run.data.sequence_length}",
        )


def check_document_attention(run: RunConfig) -> Iterator[ConfigError]:
    """TransformerEngine's layers do not receive the boundaries of documents."""
    if not run.data.attend_across_documents and run.model.kernels == "transformer_engine":
        yield ConfigError(
            "TransformerEngine's attention cannot separate the documents of a sample",
            where="data.attend_across_documents",
            found="false, model.kernels transformer_engine",
            expected="true, or model.kernels torch",
            fix="set model.kernels: torch, whose flash kernel takes documents of varying length",
        )


def check_data_source(run: RunConfig) -> Iterator[ConfigError]:
    """Pretraining reads a mixture of corpora, fine-tuning a dataset of conversations."""
    corpora, conversations = run.data.corpora, run.data.conversations
    if bool(corpora) == bool(conversations):
        yield ConfigError(
            "a run reads either corpora or conversations",
            where="data.conversations" if corpora else "data.corpora",
            found="both" if corpora else "neither",
            expected="entries under data.corpora, or data.conversations with a prefix",
            fix="set data.conversations: null, or data.corpora: []" if corpora else "name the data to train on",
        )


def check_corpus_names(run: RunConfig) -> Iterator[ConfigError]:
    """Metrics identify a corpus by its name."""
    names = [corpus.name for corpus in run.data.corpora]
    for index, name in enumerate(names):
        if name in names[:index]:
            yield ConfigError(
                "two corpora have the same name",
                where=f"data.corpora.{index}.name",
                found=name,
                expected="a different name for each corpus",
                fix=f"rename it, or add its paths to data.corpora.{names.index(name)}.paths",
            )


def check_learning_rate(run: RunConfig) -> Iterator[ConfigError]:
    """The rate falls at each drop, and the warm-up ends within the run."""
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
                expected="a larger share of the run than the previous drop",
                fix="sort schedule.drops by `after`",
            )
        if second.factor > first.factor:
            yield ConfigError(
                "a drop raises the learning rate",
                where=f"schedule.drops.{index + 1}.factor",
                found=f"{second.factor} after {first.factor}",
                expected="at most the factor of the previous drop; each is a share of the peak",
                fix="write shares of the peak, the largest first",
            )


def check_rewind(run: RunConfig) -> Iterator[ConfigError]:
    """If the guard rewinds, one of the kept checkpoints is always old enough."""
    guard, saving = run.guard, run.checkpoint
    policies = {"guard.non_finite": guard.non_finite, "guard.spike": guard.spike}
    key = next((key for key, policy in policies.items() if policy == "rewind"), None)
    if key is None:
        return
    if not saving.every_steps:
        yield ConfigError(
            "the guard cannot rewind, because no checkpoint is saved at a known step",
            where=key,
            found="rewind, checkpoint.every_steps 0",
            expected="checkpoint.every_steps of 1 or more",
            fix="set checkpoint.every_steps, or `skip` instead of `rewind`",
        )
    elif guard.rewind_steps > (saving.keep - 1) * saving.every_steps:  # the newest may be from the last step
        needed = 1 - (-guard.rewind_steps // saving.every_steps)
        yield ConfigError(
            "the guard cannot rewind further than the kept checkpoints",
            where="guard.rewind_steps",
            found=f"{guard.rewind_steps}, checkpoint.keep {saving.keep}, checkpoint.every_steps {saving.every_steps}",
            expected=f"at most {(saving.keep - 1) * saving.every_steps} steps: (keep - 1) x every_steps",
            fix=f"for example checkpoint.keep: {needed}",
        )


RULES: tuple[Rule, ...] = (
    *LAYOUT_RULES,
    check_sequence_length,
    check_document_attention,
    check_data_source,
    check_corpus_names,
    check_learning_rate,
    check_rewind,
)
