"""Plans the mixture of a run, with all its phases; on a restart, plans again what is not read yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

from megatron_dsmath.config.sections import CorpusConfig, DataConfig
from megatron_dsmath.data.indexed.dataset import IndexedDataset
from megatron_dsmath.data.indexed.sidecar import bin_sha256, read_sidecar
from megatron_dsmath.data.mixture.corpus_shards import Shards
from megatron_dsmath.data.mixture.mixture_plan import MixturePlan, Shard, Version
from megatron_dsmath.data.mixture.permutation import random_words
from megatron_dsmath.data.mixture.samples import document_start
from megatron_dsmath.errors import ConfigError, DataError, DsmathError, raise_all

HELD_OUT_RUNS = 8  # at most, per corpus


class MixturePhase(NamedTuple):
    """What is left of a phase: the weights of the corpora that it reads, by name, and the number of samples."""

    weights: Mapping[str, float]
    samples: int


def plan_run(
    config: DataConfig,
    seed: int,
    shards: Shards,
    phases: Sequence[MixturePhase],
    earlier: MixturePlan | None = None,
    next_sample: int = 0,
) -> MixturePlan:
    """Return the plan of a run with this `config` that continues at `next_sample` with `phases`, one or more.

    It is the `earlier` plan up to there, with a version for each later phase, and one for the current phase if anything
    changed. Raises ConfigError for an invalid weight, a changed seed or held-out share, and a corpus that is read more
    often than its `max_epochs`; DataError for a corpus that is too small; and the errors of `Shards.open_corpora` and
    `Shards.open_planned`.
    """
    plan = earlier or MixturePlan(seed=seed, held_out_share=config.held_out_share, shards=(), versions=())
    raise_all(list(_fixed_value_changes(plan, config, seed)))
    opened = shards.open_corpora(config.corpora)
    plan = _with_new_shards(plan, opened)
    indices = {shard.prefix: index for index, shard in enumerate(plan.shards)}
    shards_of = {name: tuple(indices[str(dataset.prefix)] for dataset in datasets) for name, datasets in opened.items()}
    begun = tuple(version for version in plan.versions if version.first_sample <= next_sample)
    plan, first_sample = plan.model_copy(update={"versions": begun}), next_sample
    for number, phase in enumerate(phases):
        length, end_sample = config.sequence_length, first_sample + phase.samples
        positions = (
            plan.position(name, weight, shards_of[name], length, first_sample) for name, weight in phase.weights.items()
        )
        version = Version(
            first_sample=first_sample,
            skipped_samples=0,
            end_sample=end_sample,
            sequence_length=length,
            corpora=tuple(positions),
        )
        if number or not plan.versions or _mixture(version) != _mixture(plan.versions[-1]):
            raise_all(list(_corpora_too_small(plan, version)))
            plan = plan.with_version(version)
        first_sample = end_sample
    raise_all(list(_repeated_too_often(plan, config.corpora, first_sample)))
    return plan


def _with_new_shards(plan: MixturePlan, opened: dict[str, list[IndexedDataset]]) -> MixturePlan:
    """Return the plan with all new shards; those added to a corpus together are split for validation together."""
    known = {shard.prefix for shard in plan.shards}
    new_shards: list[Shard] = []
    for name, datasets in opened.items():
        new = [dataset for dataset in datasets if str(dataset.prefix) not in known]
        at_least = 0 if name in plan.names else 1
        counts = [dataset.document_count for dataset in new]
        runs = held_out_runs(sum(counts), plan.held_out_share, plan.seed, name, at_least=at_least)
        firsts = accumulate(counts, initial=0)
        new_shards += [_shard(dataset, runs, first) for dataset, first in zip(new, firsts, strict=False)]
    return plan.model_copy(update={"shards": (*plan.shards, *new_shards)})


def held_out_runs(documents: int, share: float, *label: object, at_least: int = 1) -> list[range]:
    """Return runs of document numbers with `share` (0 to below 0.5) of `documents`, and `at_least` so many.

    The runs are ascending and evenly spaced, up to one document; `label` determines where the first begins.
    """
    held_out = min(documents, max(at_least, round(share * documents))) if share else 0
    if held_out == 0:
        return []
    runs = min(HELD_OUT_RUNS, held_out)
    room = documents // runs - -(-held_out // runs)
    first = int(random_words(*label, "held_out")[0]) % (room + 1)
    starts = [first + run * documents // runs for run in range(runs)]
    sizes = [(run + 1) * held_out // runs - run * held_out // runs for run in range(runs)]
    return [range(start, start + size) for start, size in zip(starts, sizes, strict=True)]


def _shard(dataset: IndexedDataset, runs: Sequence[range], first: int) -> Shard:
    """Return the record of a shard; `runs` are the held-out documents, in which its first has number `first`."""
    parts = [range(max(run.start - first, 0), min(run.stop - first, dataset.document_count)) for run in runs]
    return Shard(
        prefix=str(dataset.prefix),
        documents=dataset.document_count,
        tokens=dataset.token_count,
        sha256=bin_sha256(read_sidecar(dataset.prefix)),
        held_out=tuple(
            (document_start(dataset, part.start), document_start(dataset, part.stop)) for part in parts if part
        ),
    )


def _mixture(version: Version) -> object:
    """Return what defines a version except its start; a restart with an equal mixture adds no version."""
    corpora = {corpus.name: (corpus.weight, corpus.shards) for corpus in version.corpora}
    return version.sequence_length, version.end_sample, corpora


def _fixed_value_changes(plan: MixturePlan, config: DataConfig, seed: int) -> Iterator[ConfigError]:
    for key, before, now, why in (
        ("seed", plan.seed, seed, "it determines the order of the remaining data"),
        ("data.held_out_share", plan.held_out_share, config.held_out_share, "validation would use training documents"),
    ):
        if before != now:
            yield ConfigError(
                f"a run cannot continue with another {key}: {why}",
                where=key,
                found=now,
                expected=f"{before}, the value at the start of the run",
                fix=f"set {key}: {before}, or use a new output directory",
            )


def _corpora_too_small(plan: MixturePlan, version: Version) -> Iterator[DsmathError]:
    for corpus in version.corpora:
        shards = [plan.shards[shard] for shard in corpus.shards]
        training = sum(shard.training_tokens for shard in shards)
        parts = [("the corpus is too small for one sample", training, "add documents")]
        if plan.held_out_share:
            what = "the held-out part of the corpus is too small for one sample"
            fix = "raise data.held_out_share, or set it to 0.0 to train without validation"
            parts.append((what, sum(shard.tokens for shard in shards) - training, fix))
        for what, tokens, fix in parts:
            if tokens <= version.sequence_length:
                yield DataError(
                    what,
                    where=f"data.corpora.{corpus.name}",
                    found=f"{tokens:,} tokens",
                    expected=f"at least {version.sequence_length + 1:,} (data.sequence_length + 1)",
                    fix=f"{fix}, or shorten data.sequence_length",
                )


def _repeated_too_often(plan: MixturePlan, corpora: Sequence[CorpusConfig], end_sample: int) -> Iterator[ConfigError]:
    totals = {total.name: total for total in plan.totals(end_sample)}
    for entry in corpora:
        total = totals.get(entry.name)  # None if only an earlier phase of a changed run file reads it
        if total is not None and entry.max_epochs is not None and total.epochs > entry.max_epochs:
            yield ConfigError(
                "the run reads a corpus more often than its max_epochs",
                where=f"data.corpora.{entry.name}.max_epochs",
                found=f"{total.epochs:.4g} epochs ({total.tokens:,} tokens)",
                expected=f"at most {entry.max_epochs:g}",
                fix="lower its weight, shorten the run, add documents, or raise max_epochs",
            )
