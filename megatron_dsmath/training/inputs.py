"""What a run reads, opened and checked without torch: `dsmath train` does so once before any process starts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, NamedTuple

from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.data.batches import Batches
from megatron_dsmath.data.tokenizer import Tokenizer, load_tokenizer
from megatron_dsmath.errors import TokenizerError


class Inputs(NamedTuple):
    """The tokenizer and the mixture it made."""

    tokenizer: Tokenizer
    batches: Batches


def open_inputs(run: RunConfig) -> Inputs:
    """Open both; raise what is wrong with either, and ConfigError for a plan that repeats a corpus too often."""
    tokenizer = load_tokenizer(run.data.tokenizer)
    if tokenizer.vocabulary_size > run.model.vocabulary_size:
        raise TokenizerError(
            "the tokenizer has more words than the model",
            where="model.vocabulary_size",
            found=f"{run.model.vocabulary_size}, tokenizer {tokenizer.vocabulary_size}",
            expected="at least the tokenizer's number of words",
            fix="name the tokenizer the model was made with, or enlarge model.vocabulary_size",
        )
    batches = Batches(run.data, run.seed, run.model.vocabulary_size, tokenizer.fingerprint)
    batches.plan(run.schedule.steps * run.schedule.sequences_per_step)
    return Inputs(tokenizer, batches)


def planned_mixture(run: RunConfig) -> list[dict[str, Any]]:
    """For each corpus of the run what `data.batches.CorpusPlan` says, and how far it strays from its weight."""
    batches = open_inputs(run).batches
    samples = run.schedule.steps * run.schedule.sequences_per_step
    plans, deviations = batches.plan(samples), batches.blend.largest_deviations(samples)
    return [
        {**asdict(plan), "largest_deviation_samples": deviation}
        for plan, deviation in zip(plans, deviations, strict=True)
    ]
