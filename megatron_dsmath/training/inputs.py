"""What a run reads, opened and checked without torch: `dsmath train` does so once before any process starts."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from megatron_dsmath.checkpoint import store
from megatron_dsmath.checkpoint.manifest import read_manifest
from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.data.batches import Batches
from megatron_dsmath.data.mixture.planning import plan_run
from megatron_dsmath.data.mixture.shards import Shards
from megatron_dsmath.data.tokenizer import Tokenizer, load_tokenizer
from megatron_dsmath.errors import CheckpointError, TokenizerError
from megatron_dsmath.training.run_directory import RunDirectory
from megatron_dsmath.training.state import State


class Inputs(NamedTuple):
    """The tokenizer, the mixture it made, and the state from which the run reads on."""

    tokenizer: Tokenizer
    batches: Batches
    state: State


def open_inputs(run: RunConfig, checkpoint: Path | None) -> Inputs:
    """Open all that a run reads when it starts, or goes on after `checkpoint`, and plan it.

    Raises what is wrong with any of it, as `data.mixture.planning.plan_run`, and CheckpointError.
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
    state = State() if checkpoint is None else _saved_state(checkpoint, tokenizer)
    shards, left_steps = Shards(tokenizer.fingerprint), max(0, run.schedule.steps - state.step)
    end_sample = state.next_sample + left_steps * run.schedule.sequences_per_step
    plan = plan_run(run.data, run.seed, shards, end_sample, state.plan, state.next_sample)
    return Inputs(tokenizer, Batches(plan, shards, run.model.vocabulary_size), replace(state, plan=plan))


def newest_checkpoint(run: RunConfig) -> Path | None:
    """The newest whole checkpoint of the run; None where it never saved."""
    return store.newest(RunDirectory(Path(run.output)).checkpoints)


def planned_mixture(run: RunConfig) -> list[dict[str, Any]]:
    """For each corpus of the run what `data.mixture.plan.CorpusTotal` says of its end, and its largest deviation.

    A run that saved is planned on from its newest checkpoint; the deviation counts from there if the mixture changed.
    """
    plan = open_inputs(run, newest_checkpoint(run)).batches.plan
    version = plan.versions[-1]
    deviations = version.blend.largest_deviations(version.end_sample - version.first_sample)
    largest = dict(zip(version.blend.names, deviations, strict=True))
    totals = plan.totals(version.end_sample)
    return [{**asdict(total), "largest_deviation_samples": largest.get(total.name)} for total in totals]


def _saved_state(checkpoint: Path, tokenizer: Tokenizer) -> State:
    manifest = read_manifest(checkpoint)
    if manifest.kind != "training":
        raise CheckpointError(
            "the run cannot be continued from weights alone",
            where=checkpoint,
            found=f"a checkpoint of the kind {manifest.kind}",
            expected="one that a run saved",
            fix="move it elsewhere and name it under model.initial_weights",
        )
    if manifest.tokenizer_fingerprint != tokenizer.fingerprint:
        raise CheckpointError(
            "the run was trained with another tokenizer",
            where=checkpoint,
            found=f"fingerprint {manifest.tokenizer_fingerprint}",
            expected=f"fingerprint {tokenizer.fingerprint}, of data.tokenizer",
            fix="set data.tokenizer to the one the run started with, or output to a new directory",
        )
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
