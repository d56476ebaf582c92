"""Rules about values that contradict each other, checked before any process starts.

Each rule is a generator of errors. In a file with invalid values a rule may raise AttributeError for a value that it
needs; `config.load` ignores it there.
"""

from __future__ import annotations

from collections.abc import Iterator

from megatron_dsmath.config.layout_contradictions import LAYOUT_RULES, Rule
from megatron_dsmath.config.phases import phases, segments
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


def check_schedule_form(run: RunConfig) -> Iterator[ConfigError]:
    """A run has one learning rate: phases, a curve, or the older keys; each with its length."""
    schedule = run.schedule
    older = schedule.warmup_steps is not None or bool(schedule.drops)
    forms = {"phases": bool(schedule.phases), "learning_rate": schedule.learning_rate is not None, "drops": older}
    given = [name for name, is_given in forms.items() if is_given]
    if len(given) != 1:
        yield ConfigError(
            "the learning rate is stated more than once" if given else "the learning rate is missing",
            where=f"schedule.{given[-1]}" if given else "schedule",
            found=" and ".join(f"schedule.{name}" for name in given) or "none of the three",
            expected="schedule.learning_rate, schedule.phases, or warmup_steps with drops",
            fix="delete the others" if given else "add learning_rate: warm up over 2000 steps, constant",
        )
    if given == ["drops"] and schedule.warmup_steps is None:
        yield ConfigError(
            "the key 'warmup_steps' is missing",
            where="schedule.warmup_steps",
            found="nothing",
            expected="warmup_steps with drops",
            fix="add warmup_steps: 0",
        )
    if bool(schedule.phases) == (schedule.steps is not None):
        yield ConfigError(
            "the length of the run is stated twice" if schedule.phases else "the key 'steps' is missing",
            where="schedule.steps",
            found=f"{schedule.steps}, and the lengths of schedule.phases" if schedule.phases else "nothing",
            expected="no steps: each phase has a length" if schedule.phases else "the optimizer steps of the run",
            fix="delete schedule.steps" if schedule.phases else "add steps, or schedule.phases with a length each",
        )


def check_phases(run: RunConfig) -> Iterator[ConfigError]:
    """Phases have different names, and their weights are of corpora that the run has."""
    entries, corpora = run.schedule.phases, [corpus.name for corpus in run.data.corpora]
    names = [phase.name for phase in entries]
    for index, phase in enumerate(entries):
        where = f"schedule.phases.{index}"
        if phase.name in names[:index]:
            yield ConfigError(
                "two phases have the same name",
                where=f"{where}.name",
                found=phase.name,
                expected="a different name for each phase",
                fix=f"rename it, for example {phase.name}_{index + 1}",
            )
        for name in phase.weights or {}:
            if name not in corpora:
                yield ConfigError(
                    "a phase reads a corpus without data",
                    where=f"{where}.weights.{name}",
                    found=name,
                    expected=f"one of {', '.join(corpora)}" if corpora else "no weights in a run on conversations",
                    fix="add it to data.corpora with its paths (weight: 0.0 if only phases read it), or delete it here",
                )
    default_is_read = any(phase.weights is None for phase in entries) or not entries
    if corpora and default_is_read and not any(corpus.weight for corpus in run.data.corpora):
        yield ConfigError(
            "no corpus has a weight above 0",
            where="data.corpora.0.weight",
            found="only weights of 0",
            expected="a weight above 0, or schedule.phases that each have weights",
            fix="give the corpora their shares of the tokens",
        )
    for index, corpus in enumerate(run.data.corpora):
        weights = [corpus.weight] if default_is_read else []
        weights += [phase.weights.get(corpus.name, 0.0) for phase in entries if phase.weights is not None]
        if not any(weights):
            yield ConfigError(
                "a corpus is never read",
                where=f"data.corpora.{index}.weight",
                found=corpus.weight,
                expected="a number above 0, relative to the other weights",
                fix="remove the corpus if the run does not use it",
            )


def check_drops(run: RunConfig) -> Iterator[ConfigError]:
    """In the older form, the rate falls at each drop, and the warm-up ends within the run."""
    schedule = run.schedule
    if schedule.warmup_steps is None or schedule.steps is None:
        return
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


def check_learning_rate(run: RunConfig) -> Iterator[ConfigError]:
    """The parts of a curve follow each other within their phase, and only a warm-up raises the rate."""
    if not run.schedule.phases and (run.schedule.learning_rate is None or run.schedule.steps is None):
        return
    every = phases(run)
    for segment in segments(run):
        phase, text = every[segment.phase], segment.text
        where = f"schedule.phases.{segment.phase}.learning_rate" if run.schedule.phases else "schedule.learning_rate"
        if segment.end_step < segment.first_step:
            yield ConfigError(
                "a part of the learning rate ends before it begins",
                where=where,
                found=f"{text}: ends at step {segment.end_step:,}, the part before at {segment.first_step:,}",
                expected="parts in the order of their ends",
                fix="sort the parts, or correct the lengths",
            )
        if segment.end_step > phase.end_step:
            yield ConfigError(
                "a part of the learning rate ends after its phase",
                where=where,
                found=f"{text}: ends at step {segment.end_step:,}",
                expected=f"at most step {phase.end_step:,}, where the phase ends",
                fix="shorten the part, or lengthen the phase or the run",
            )
        has_steps, rise = segment.end_step > segment.first_step, segment.last_rate - segment.first_rate
        if has_steps and (rise < 0 if segment.shape == "warm up" else rise > 0):
            yield ConfigError(
                "a part of the learning rate rises" if rise > 0 else "a warm-up lowers the learning rate",
                where=where,
                found=f"{text}: from {segment.first_rate:g} to {segment.last_rate:g}",
                expected="a rate that rises in a warm-up and in no other part; 10% is a share of the peak",
                fix="write `warm up to RATE over LENGTH` to raise it, `linear to RATE over LENGTH` to lower it",
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
    check_schedule_form,
    check_phases,
    check_drops,
    check_learning_rate,
    check_rewind,
)
