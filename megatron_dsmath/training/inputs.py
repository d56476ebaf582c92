"""The inputs of a run: tokenizer, data and the state of a checkpoint; opened and checked without torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from megatron_dsmath.checkpoint import store
from megatron_dsmath.checkpoint.manifest import Manifest, read_manifest
from megatron_dsmath.config.phases import phase_at, phases
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.data.audit.run_batches import RunBatches, open_batches
from megatron_dsmath.data.mixture.mixture_planning import MixturePhase
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer, load_tokenizer
from megatron_dsmath.errors import CheckpointError, OutputError, TokenizerError, raise_all
from megatron_dsmath.files.atomic_files import require_free_space
from megatron_dsmath.files.directories import require_writable
from megatron_dsmath.training.run_directory import RunDirectory
from megatron_dsmath.training.state import State

TOKENIZER, PHASES = "data.tokenizer", "schedule.phases"
_ABSENT = "absent"
STATE_BYTES_PER_PARAMETER = 16  # at most: a weight of 4 bytes, its fp32 copy and two moments

Resume = Literal["newest", "last-good"]  # the newest checkpoint, or the newest without a damaged byte


class Inputs(NamedTuple):
    """The tokenizer, the data, and the state from which the run continues."""

    tokenizer: Tokenizer
    batches: RunBatches
    state: State


def open_inputs(run: RunConfig, checkpoint: Path | None) -> Inputs:
    """Open the tokenizer and the data of a run that starts, or continues from `checkpoint`, and plan its data.

    Raises TokenizerError, CheckpointError, and as `run_batches.open_batches`.
    """
    tokenizer = load_tokenizer(run.data.tokenizer)
    if tokenizer.vocabulary_size > run.model.vocabulary_size:
        raise TokenizerError(
            "the tokenizer has more tokens than the model's vocabulary",
            where="model.vocabulary_size",
            found=f"{run.model.vocabulary_size}, tokenizer {tokenizer.vocabulary_size}",
            expected="at least the tokenizer's number of tokens",
            fix="use the tokenizer that the model was trained with, or enlarge model.vocabulary_size",
        )
    state = State() if checkpoint is None else _saved_state(checkpoint, run, tokenizer)
    batches = open_batches(run, tokenizer.fingerprint, remaining_phases(run, state.step), state.plan, state.next_sample)
    return Inputs(tokenizer, batches, replace(state, plan=batches.plan))


def remaining_phases(run: RunConfig, step: int) -> list[MixturePhase]:
    """What is left of the phases after `step` completed steps; the last phase is always listed."""
    *_, last = every = phases(run)
    current = [phase for phase in every if phase.end_step > step] or [last]
    remaining = [max(0, phase.end_step - max(step, phase.first_step)) for phase in current]
    return [
        MixturePhase(phase.weights, steps * phase.sequences_per_step)
        for phase, steps in zip(current, remaining, strict=True)
    ]


def require_room(run: RunConfig) -> None:
    """Raise OutputError unless the disk has room for the checkpoints that the run keeps, and one more."""
    checkpoints, keep = RunDirectory(Path(run.output)).checkpoints, run.checkpoint.keep
    missing = keep + 1 - min(keep, len(store.step_folders(checkpoints)))
    size_bytes = run.model.parameters * STATE_BYTES_PER_PARAMETER
    folder = require_writable(checkpoints)
    try:
        require_free_space(folder, missing * size_bytes)
    except OutputError as error:
        raise OutputError(
            "the run's checkpoints do not fit",
            where=error.where,
            found=error.found,
            expected=f"{missing * size_bytes:,} bytes: {missing} more checkpoints of {size_bytes:,} at most",
            fix=f"free space there, choose another output, or lower checkpoint.keep, now {keep}",
        ) from error


def _saved_state(checkpoint: Path, run: RunConfig, tokenizer: Tokenizer) -> State:
    manifest = read_manifest(checkpoint)
    if manifest.kind != "training":
        raise CheckpointError(
            "the run cannot be continued from weights alone",
            where=checkpoint,
            found=f"a checkpoint of the kind {manifest.kind}",
            expected="a checkpoint that a run saved",
            fix="move it to another directory, and set model.initial_weights to it",
        )
    refuse_changes(checkpoint, manifest, run, tokenizer.fingerprint)
    try:
        return State.from_dict(manifest.state)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            "the checkpoint does not hold the state of its run's data",
            where=checkpoint,
            found=str(error).partition("\n")[0],
            expected="the state that this version saves",
            fix="continue with the version that saved it, or start a new run from its weights",
        ) from None


def deciding_keys(run: RunConfig, step: int) -> dict[str, Any]:
    """The values that determine the order of the tokens of the first `step` steps; a corpus is identified by its name.

    Batch and mixture are those of the phase of the last of these steps, and `schedule.phases` lists the earlier ones:
    later phases may change, and a phase may be added. The dataset of conversations and the tokenizer are not included:
    their content is compared (`conversation_plan`).
    """
    current = phase_at(run, max(0, step - 1))
    data = run.data.model_dump(mode="json", exclude={"tokenizer", "corpora", "conversations"})
    values: dict[str, Any] = {"seed": run.seed, "schedule.sequences_per_step": current.sequences_per_step}
    earlier = [phase for phase in phases(run) if phase.end_step <= current.first_step]
    if earlier:
        values[PHASES] = [[phase.steps, phase.sequences_per_step, dict(phase.weights)] for phase in earlier]
    values |= {f"data.{key}": value for key, value in data.items()}
    for corpus in run.data.corpora:
        if corpus.name in current.weights:
            key = f"data.corpora.{corpus.name}"
            values |= {f"{key}.weight": current.weights[corpus.name], f"{key}.paths": list(corpus.paths)}
    return values


def refuse_changes(checkpoint: Path, manifest: Manifest, run: RunConfig, tokenizer_fingerprint: str) -> None:
    """Raise CheckpointError for each key that differs and that `checkpoint.allowed_changes` does not list."""
    before = {TOKENIZER: manifest.tokenizer_fingerprint, **manifest.run}
    now = {TOKENIZER: tokenizer_fingerprint, **(deciding_keys(run, manifest.step) if manifest.run else {})}
    allowed = run.checkpoint.allowed_changes
    refusals = [
        CheckpointError(
            f"{key} differs from the value that the run was trained with",
            where=checkpoint,
            found=now.get(key, _ABSENT),
            expected=before.get(key, _ABSENT),
            fix=f"restore it, or allow the change: --set 'checkpoint.allowed_changes=[{_section(key)}]'",
        )
        for key in {**before, **now}
        if before.get(key, _ABSENT) != now.get(key, _ABSENT) and _section(key) not in allowed
    ]
    raise_all(refusals)


def _section(key: str) -> str:
    """The key of the run file; a change of one corpus is a change of `data.corpora`."""
    return "data.corpora" if key.startswith("data.corpora.") else key
