"""What a run reads, opened and checked without torch: `dsmath train` does so once before any process starts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal, NamedTuple

from megatron_dsmath.checkpoint import store
from megatron_dsmath.checkpoint.manifest import read_manifest
from megatron_dsmath.checkpoint.whole_directory import require_writable
from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.data.atomic_files import require_free_space
from megatron_dsmath.data.reading import RunBatches, open_batches
from megatron_dsmath.data.tokenizer import Tokenizer, load_tokenizer
from megatron_dsmath.errors import CheckpointError, OutputError, TokenizerError
from megatron_dsmath.training.changes import refuse_changes
from megatron_dsmath.training.run_directory import RunDirectory
from megatron_dsmath.training.state import State

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


def newest_checkpoint(run: RunConfig) -> Path | None:
    """The newest whole checkpoint of the run; None where it never saved."""
    return store.newest(RunDirectory(Path(run.output)).checkpoints)


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
