"""The plan of a mixture: versions of the corpora and their positions, as stored in checkpoints and in the ledger.

Each version holds the position of every corpus at its first sample, so that a new mixture continues with unread data.
The phases of a run are versions that are planned before they begin.
docs/data_plan.md explains the plan with an example.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import chain
from typing import Literal

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from megatron_dsmath.config.sections import Section
from megatron_dsmath.data.mixture.blend import Blend
from megatron_dsmath.data.mixture.run_plan import Count, RunPlan, VersionStart, require_order
from megatron_dsmath.data.mixture.samples import samples_per_epoch

NO_END = 2**63 - 1  # end of the last version


class Shard(Section):
    """A .bin/.idx pair as the run first opened it."""

    prefix: str
    documents: Count
    tokens: Count
    sha256: str | None  # hash of the .bin from its sidecar; null if there was no sidecar
    held_out: tuple[tuple[Count, Count], ...]  # token ranges [first, end) of the documents held out for validation

    @property
    def training_tokens(self) -> int:
        """The number of tokens that are not held out."""
        return self.tokens - sum(end - first for first, end in self.held_out)


class CorpusPosition(Section):
    """A corpus and its position at the start of a version. Shards are indices into `MixturePlan.shards`."""

    name: str
    weight: float
    shards: tuple[Count, ...]  # the shards of all later epochs
    epoch: Count  # the current epoch; one that a new sequence length cut short counts as one
    position: Count  # the number of samples of the current epoch that were drawn before
    epoch_shards: tuple[Count, ...]  # the shards of the current epoch


class Version(VersionStart):
    """A mixture that is valid from `first_sample` on."""

    end_sample: Count  # the planned end of the phase
    sequence_length: PositiveInt
    corpora: tuple[CorpusPosition, ...] = Field(min_length=1)

    @cached_property
    def blend(self) -> Blend:
        """The blend of the corpora; its sample 0 is `first_sample`."""
        return Blend({corpus.name: corpus.weight for corpus in self.corpora})


@dataclass(frozen=True)
class CorpusTotal:
    """What a run drew from one corpus. `share` is that of the current mixture, 0 for a removed corpus."""

    name: str
    share: float
    samples: int
    tokens: int
    epochs: float


class MixturePlan(RunPlan):
    """All versions of a run's mixture, in order, and the shards that they use."""

    arithmetic: Literal[1] = 1  # incremented when a newer program would draw other samples from the same plan
    seed: NonNegativeInt
    held_out_share: float
    shards: tuple[Shard, ...]
    versions: tuple[Version, ...]  # empty only before the first start of a run

    @model_validator(mode="after")
    def _require_consistency(self) -> MixturePlan:
        """Check shard indices, held-out ranges, corpus sizes and the order of versions in a plan read from a file."""
        corpora = [corpus for version in self.versions for corpus in version.corpora]
        indices = {index for corpus in corpora for index in (*corpus.shards, *corpus.epoch_shards)}
        if indices - set(range(len(self.shards))):
            raise ValueError("a corpus has a shard that is not listed")
        for shard in self.shards:
            bounds = [0, *chain.from_iterable(shard.held_out), shard.tokens]
            if bounds != sorted(bounds):
                raise ValueError("a held-out range is outside its shard")
        for version in self.versions:
            parts = chain.from_iterable((corpus.shards, corpus.epoch_shards) for corpus in version.corpora)
            if not all(self.samples_per_epoch(part, version.sequence_length) for part in parts):
                raise ValueError("a corpus has no sample")
        require_order(self.versions)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The corpora of all versions, in order of first appearance."""
        return tuple(dict.fromkeys(corpus.name for version in self.versions for corpus in version.corpora))

    def last_version_with(self, name: str, sample: int) -> int | None:
        """Return the index of the newest version up to `sample` that contains a corpus, or None."""
        indices = range(self.version_at(sample), -1, -1)
        return next((index for index in indices if name in self.versions[index].blend.names), None)

    def corpus_positions(self, index: int, sample: int) -> dict[str, CorpusPosition]:
        """Return the positions of the corpora of version `index` at `sample` or at the version's end, by name."""
        version = self.versions[index]
        drawn = self._drawn(index, min(sample, self._end(index)))
        return {
            corpus.name: self._advanced(corpus, version.sequence_length, count)
            for corpus, count in zip(version.corpora, drawn, strict=True)
        }

    def totals(self, sample: int) -> tuple[CorpusTotal, ...]:
        """Return what the run trained on before `sample`, per corpus in the order of `names`."""
        totals = {name: CorpusTotal(name, 0.0, 0, 0, 0.0) for name in self.names}
        current = self.version_at(sample)
        for index, version in enumerate(self.versions[: current + 1]):
            positions = self.corpus_positions(index, sample)
            drawn = self._drawn(index, min(sample, self._trained_end(index)))
            for name, share, count in zip(version.blend.names, version.blend.shares, drawn, strict=True):
                size = self.samples_per_epoch(positions[name].epoch_shards, version.sequence_length)
                totals[name] = CorpusTotal(
                    name,
                    share=float(share) if index == current else 0.0,
                    samples=totals[name].samples + count,
                    tokens=totals[name].tokens + count * version.sequence_length,
                    epochs=float(positions[name].epoch + Fraction(positions[name].position, size)),
                )
        return tuple(totals.values())

    def with_skipped(self, next_sample: int, samples: int) -> MixturePlan:
        """See `RunPlan`."""
        current, first, end = self.version_at(next_sample), next_sample, next_sample + samples
        later = self.versions[current + 1 :]
        plan = self.model_copy(update={"versions": self.versions[: current + 1]})
        for version in later:
            if version.first_sample < end:  # skipped up to its own samples, which are skipped too
                skipped = version.model_copy(update={"skipped_samples": version.first_sample - first})
                plan, first = plan.with_version(skipped), version.first_sample
        plan = plan.with_version(plan.moved(self.versions[current], end, end - first, samples))
        for version in later:
            plan = plan.with_version(plan.moved(version, version.first_sample + samples, 0, samples))
        return plan

    def with_version(self, version: Version) -> MixturePlan:
        """Return the plan with one more version."""
        return self.model_copy(update={"versions": (*self.versions, version)})

    def moved(self, version: Version, first_sample: int, skipped_samples: int, samples: int) -> Version:
        """Return a version that begins at `first_sample`, after all others, and ends `samples` later than before."""
        length = version.sequence_length
        return Version(
            first_sample=first_sample,
            skipped_samples=skipped_samples,
            end_sample=version.end_sample + samples,
            sequence_length=length,
            corpora=tuple(
                self.position(corpus.name, corpus.weight, corpus.shards, length, first_sample)
                for corpus in version.corpora
            ),
        )

    def position(
        self, name: str, weight: float, shards: tuple[int, ...], sequence_length: int, sample: int
    ) -> CorpusPosition:
        """Return where a corpus continues at `sample`, after all versions.

        That is in its epoch, at the next one if the sequence length is new, or at its start.
        """
        epoch, position, epoch_shards = 0, 0, shards
        index = self.last_version_with(name, sample)
        if index is not None:
            before = self.corpus_positions(index, sample)[name]
            epoch, position, epoch_shards = before.epoch, before.position, before.epoch_shards
            if position and self.versions[index].sequence_length != sequence_length:
                epoch, position = epoch + 1, 0
        return CorpusPosition(
            name=name,
            weight=weight,
            shards=shards,
            epoch=epoch,
            position=position,
            epoch_shards=epoch_shards if position else shards,
        )

    def samples_per_epoch(self, shards: tuple[int, ...], sequence_length: int) -> int:
        """Return the number of samples in an epoch over these shards."""
        return samples_per_epoch(sum(self.shards[shard].training_tokens for shard in shards), sequence_length)

    def _end(self, index: int) -> int:
        """Return the end of a version: the first sample of the next one, or NO_END."""
        return self.versions[index + 1].first_sample if index + 1 < len(self.versions) else NO_END

    def _trained_end(self, index: int) -> int:
        """Return the end of a version without the samples that the next version skips."""
        return self._end(index) - (self.versions[index + 1].skipped_samples if self._end(index) < NO_END else 0)

    def _drawn(self, index: int, end: int) -> list[int]:
        """Return how many samples of each of its corpora a version draws before sample `end`."""
        version = self.versions[index]
        drawn: list[int] = version.blend.counts(np.array([end - version.first_sample]))[0].tolist()
        return drawn

    def _advanced(self, corpus: CorpusPosition, sequence_length: int, drawn: int) -> CorpusPosition:
        """Return the position of a corpus after `drawn` more of its samples."""
        position = corpus.position + drawn
        left = position - self.samples_per_epoch(corpus.epoch_shards, sequence_length)
        if left < 0:
            return corpus.model_copy(update={"position": position})
        rounds, position = divmod(left, self.samples_per_epoch(corpus.shards, sequence_length))
        return corpus.model_copy(
            update={"epoch": corpus.epoch + 1 + rounds, "position": position, "epoch_shards": corpus.shards}
        )
