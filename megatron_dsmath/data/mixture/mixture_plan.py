"""What a run reads, version by version: numbers only, in every checkpoint and in the run's ledger.

A version holds from its first sample until the next one's. It says where each corpus stands, so that a change of
mixture goes on with data that was not seen yet; docs/data_plan.md explains it with an example.
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

NEVER = 2**63 - 1  # the end of a version that no other follows


class Shard(Section):
    """A .bin/.idx pair as it was when the run first opened it."""

    prefix: str
    documents: Count
    tokens: Count
    sha256: str | None
    """Of the .bin, as its sidecar told; null where there was none."""
    held_out: tuple[tuple[Count, Count], ...]
    """Whole documents kept for validation: ranges of tokens, [first, end)."""

    @property
    def training_tokens(self) -> int:
        """Tokens that are not held out."""
        return self.tokens - sum(end - first for first, end in self.held_out)


class CorpusPosition(Section):
    """A corpus as a version begins. Shards are places in `Plan.shards`."""

    name: str
    weight: float
    shards: tuple[Count, ...]
    """What its coming epochs are cut from."""
    epoch: Count
    """The epoch it stands in; one that a new sequence length cut short counts as one."""
    position: Count
    """Samples of that epoch drawn before."""
    epoch_shards: tuple[Count, ...]
    """What that epoch is cut from."""


class Version(VersionStart):
    """A mixture, and from which sample of the run on it is drawn."""

    end_sample: Count
    """Where the run was to end."""
    sequence_length: PositiveInt
    corpora: tuple[CorpusPosition, ...] = Field(min_length=1)

    @cached_property
    def blend(self) -> Blend:
        """The mixture; its sample 0 is `first_sample`."""
        return Blend({corpus.name: corpus.weight for corpus in self.corpora})


@dataclass(frozen=True)
class CorpusTotal:
    """What a run has drawn from one corpus; `share` is its part of the mixture that holds then, 0 once removed."""

    name: str
    share: float
    samples: int
    tokens: int
    epochs: float


class MixturePlan(RunPlan):
    """All versions of a run's data, in order, and the shards they speak of."""

    arithmetic: Literal[1] = 1
    """Raised when a newer program would draw other samples from the same numbers."""
    seed: NonNegativeInt
    held_out_share: float
    shards: tuple[Shard, ...]
    versions: tuple[Version, ...]
    """Empty only before a run's first start."""

    @model_validator(mode="after")
    def _require_consistency(self) -> MixturePlan:
        """What was read from a file may speak of shards that are not there, or of versions out of order."""
        corpora = [corpus for version in self.versions for corpus in version.corpora]
        places = {place for corpus in corpora for place in (*corpus.shards, *corpus.epoch_shards)}
        if places - set(range(len(self.shards))):
            raise ValueError("a corpus has a shard that is not listed")
        for shard in self.shards:
            bounds = [0, *chain.from_iterable(shard.held_out), shard.tokens]
            if bounds != sorted(bounds):
                raise ValueError("a shard holds out what it does not have")
        for version in self.versions:
            parts = chain.from_iterable((corpus.shards, corpus.epoch_shards) for corpus in version.corpora)
            if not all(self.samples_per_epoch(part, version.sequence_length) for part in parts):
                raise ValueError("a corpus has no sample")
        require_order(self.versions)
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """Every corpus of any version, in the order in which they came."""
        return tuple(dict.fromkeys(corpus.name for version in self.versions for corpus in version.corpora))

    def last_version_with(self, name: str, sample: int) -> int | None:
        """The newest version before or at `sample` that reads a corpus; None where none does."""
        places = range(self.version_at(sample), -1, -1)
        return next((place for place in places if name in self.versions[place].blend.names), None)

    def corpus_positions(self, place: int, sample: int) -> dict[str, CorpusPosition]:
        """Where the corpora of the version `place` stand before `sample`, or at its end if that is earlier, by name."""
        version = self.versions[place]
        drawn = self._drawn(place, min(sample, self._end(place)))
        return {
            corpus.name: self._advanced(corpus, version.sequence_length, count)
            for corpus, count in zip(version.corpora, drawn, strict=True)
        }

    def totals(self, sample: int) -> tuple[CorpusTotal, ...]:
        """What the run has trained on before `sample`, corpus by corpus as in `names`."""
        totals = {name: CorpusTotal(name, 0.0, 0, 0, 0.0) for name in self.names}
        current = self.version_at(sample)
        for place, version in enumerate(self.versions[: current + 1]):
            positions = self.corpus_positions(place, sample)
            drawn = self._drawn(place, min(sample, self._trained_end(place)))
            for name, share, count in zip(version.blend.names, version.blend.shares, drawn, strict=True):
                size = self.samples_per_epoch(positions[name].epoch_shards, version.sequence_length)
                totals[name] = CorpusTotal(
                    name,
                    share=float(share) if place == current else 0.0,
                    samples=totals[name].samples + count,
                    tokens=totals[name].tokens + count * version.sequence_length,
                    epochs=float(positions[name].epoch + Fraction(positions[name].position, size)),
                )
        return tuple(totals.values())

    def with_skipped(self, next_sample: int, samples: int) -> MixturePlan:
        """See `RunPlan`."""
        place, first = len(self.versions) - 1, next_sample + samples
        last = self.versions[place]
        version = Version(
            first_sample=first,
            skipped_samples=samples,
            end_sample=last.end_sample + samples,
            sequence_length=last.sequence_length,
            corpora=tuple(self.corpus_positions(place, first).values()),
        )
        return self.model_copy(update={"versions": (*self.versions, version)})

    def samples_per_epoch(self, shards: tuple[int, ...], sequence_length: int) -> int:
        """How many samples an epoch over these shards has."""
        return samples_per_epoch(sum(self.shards[shard].training_tokens for shard in shards), sequence_length)

    def _end(self, place: int) -> int:
        """The sample before which a version ends; the last one never does."""
        return self.versions[place + 1].first_sample if place + 1 < len(self.versions) else NEVER

    def _trained_end(self, place: int) -> int:
        """The same without the samples that the next version passes over."""
        return self._end(place) - (self.versions[place + 1].skipped_samples if self._end(place) < NEVER else 0)

    def _drawn(self, place: int, end: int) -> list[int]:
        """How many samples a version draws of each of its corpora before the sample `end`."""
        version = self.versions[place]
        drawn: list[int] = version.blend.counts(np.array([end - version.first_sample]))[0].tolist()
        return drawn

    def _advanced(self, corpus: CorpusPosition, sequence_length: int, drawn: int) -> CorpusPosition:
        """The position of a corpus after `drawn` more of its samples."""
        position = corpus.position + drawn
        left = position - self.samples_per_epoch(corpus.epoch_shards, sequence_length)
        if left < 0:
            return corpus.model_copy(update={"position": position})
        rounds, position = divmod(left, self.samples_per_epoch(corpus.shards, sequence_length))
        return corpus.model_copy(
            update={"epoch": corpus.epoch + 1 + rounds, "position": position, "epoch_shards": corpus.shards}
        )
