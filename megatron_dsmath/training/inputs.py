"""What a run reads, opened and checked without torch: `dsmath train` does so once before any process starts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from megatron_dsmath.checkpoint import store
from megatron_dsmath.checkpoint.manifest import Manifest, read_manifest
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.data.audit.run_batches import RunBatches, open_batches
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer, load_tokenizer
from megatron_dsmath.errors import CheckpointError, OutputError, TokenizerError, raise_all
from megatron_dsmath.files.atomic_files import require_free_space
from megatron_dsmath.files.directories import require_writable
from megatron_dsmath.training.run_directory import RunDirectory
from megatron_dsmath.training.state import State

TOKENIZER = "data.tokenizer"
_ABSENT = "absent"


def deciding_keys(run: RunConfig) -> dict[str, Any]:
    """The values that decide which tokens come next, by dotted key; a corpus goes by its name.

    A set of conversations, as the tokenizer, is compared by its content (`data.conversations.plan`).
    """
    data = run.data.model_dump(mode="json", exclude={"tokenizer", "corpora", "conversations"})
    values = {"seed": run.seed, "schedule.sequences_per_step": run.schedule.sequences_per_step}
    values |= {f"data.{key}": value for key, value in data.items()}
    for corpus in run.data.corpora:
        facts = corpus.model_dump(mode="json", exclude={"name", "max_epochs"})  # a limit, not a choice
        values |= {f"data.corpora.{corpus.name}.{key}": value for key, value in facts.items()}
    return values


def refuse_changes(checkpoint: Path, manifest: Manifest, run: RunConfig, tokenizer_fingerprint: str) -> None:
    """Raise CheckpointError for each key that differs and is not below one of `checkpoint.allowed_changes`."""
    before = {TOKENIZER: manifest.tokenizer_fingerprint, **manifest.run}
    now = {TOKENIZER: tokenizer_fingerprint, **(deciding_keys(run) if manifest.run else {})}
    allowed = run.checkpoint.allowed_changes
    refusals = [
        CheckpointError(
            f"{key} is not what the run was trained with",
            where=checkpoint,
            found=now.get(key, _ABSENT),
            expected=before.get(key, _ABSENT),
            fix=f"restore it, or say that the change is meant: --set 'checkpoint.allowed_changes=[{_section(key)}]'",
        )
        for key in _differing(before, now)
        if not _is_allowed(key, allowed)
    ]
    raise_all(refusals)


def _differing(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for key in {**before, **now}:
        if before.get(key, _ABSENT) != now.get(key, _ABSENT):
            yield key


def _section(key: str) -> str:
    """The key of the run file: a corpus that is new or has another weight is a change of all of them."""
    return "data.corpora" if key.startswith("data.corpora.") else key


def _is_allowed(key: str, allowed: Sequence[str]) -> bool:
    return _section(key) in allowed


STATE_BYTES_PER_PARAMETER = 16  # at most: the weight, its fp32 copy and two moments

Resume = Literal["newest", "last-good"]
"""From which checkpoint a run goes on: the newest, or the newest whose every byte is as it was saved."""


class Inputs(NamedTuple):
    """The tokenizer, the data it made, and the state from which the run reads on."""

    tokenizer: Tokenizer
    batches: RunBatches
    state: State


def open_inputs(run: RunConfig, checkpoint: Path | None) -> Inputs:
    """Open all that a run reads when it starts, or goes on after `checkpoint`, and plan it.

    Raises what is wrong with any of it, as `data.reading.open_batches`, and CheckpointError.
    """
    tokenizer = load_tokenizer(run.data.tokenizer)
    if tokenizer.vocabulary_size > run.model.vocabulary_size:
        raise TokenizerError(
            "the tokenizer has more words than the model",
            where="model.vocabulary_size",
            found=f"{run.model.vocabulary_size}, tokenizer {tokenizer.vocabulary_size}",
            expected="at least the tokenizer's number of words",
            fix="name the tokenizer the model was made with, or enlarge model.vocabulary_size",
        )
    state = State() if checkpoint is None else _saved_state(checkpoint, run, tokenizer)
    end_sample = state.next_sample + max(0, run.schedule.steps - state.step) * run.schedule.sequences_per_step
    batches = open_batches(run, tokenizer.fingerprint, end_sample, state.plan, state.next_sample)
    return Inputs(tokenizer, batches, replace(state, plan=batches.plan))


def require_room(run: RunConfig) -> None:
    """Raise OutputError unless the disk can take the checkpoints that the run keeps, and one more beside them."""
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
            expected="one that a run saved",
            fix="move it elsewhere and name it under model.initial_weights",
        )
    refuse_changes(checkpoint, manifest, run, tokenizer.fingerprint)
    try:
        return State.from_dict(manifest.state)
    except (TypeError, ValueError) as error:
        raise CheckpointError(
            "the checkpoint does not say what its run was reading",
            where=checkpoint,
            found=str(error).partition("\n")[0],
            expected="the state that this version saves",
            fix="continue with the version that saved it, or begin a new run from its weights",
        ) from None
