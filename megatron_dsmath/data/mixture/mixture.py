"""One version of a plan, opened: sample of the run -> corpus -> window -> tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np

from megatron_dsmath.data.indexed.dataset import IndexedDataset
from megatron_dsmath.data.mixture.permutation import IntArray
from megatron_dsmath.data.mixture.plan import Plan, Shard, Standing
from megatron_dsmath.data.mixture.samples import Passage, Samples, Segment, Stream
from megatron_dsmath.data.mixture.shards import Shards, raise_all
from megatron_dsmath.errors import DsmathError


class Locations(NamedTuple):
    """Where samples lie, each int64 [n]: corpus (its place in `Mixture.names`), epoch, first token of its stream."""

    corpus: IntArray
    epoch: IntArray
    start: IntArray


class Mixture:
    """The corpora of a version; `training` and `validation` hold the samples of each of `names`."""

    def __init__(self, plan: Plan, version: int, shards: Shards, vocabulary_size: int) -> None:
        """Open every shard of the version; all that is wrong with them is raised at once, as by `Shards.planned`."""
        self.version = plan.versions[version]
        self.names = self.version.blend.names
        self.training: list[Samples] = []
        self.validation: list[Samples] = []
        errors: list[DsmathError] = []
        for corpus in self.version.corpora:
            try:
                self._open(plan, corpus, shards, vocabulary_size)
            except DsmathError as error:
                errors.append(error)
        raise_all(errors)

    def locate(self, samples: IntArray) -> Locations:
        """Where the `samples` of the run, int64 [n], lie; needs no read, and no longer for a late sample."""
        draw = self.version.blend.locate(samples - self.version.first_sample)
        locations = Locations(draw.corpus, np.empty_like(samples), np.empty_like(samples))
        for corpus, training in enumerate(self.training):
            rows = draw.corpus == corpus
            windows = training.locate(draw.number[rows])
            locations.epoch[rows], locations.start[rows] = windows.epoch, windows.start
        return locations

    def passages(self, sample: int) -> Iterator[tuple[str, Passage]]:
        """What a sample of the run holds, document by document, each with the name of its corpus."""
        corpus, epoch, start = (int(column[0]) for column in self.locate(np.array([sample])))
        for passage in self.training[corpus].passages(epoch, start):
            yield self.names[corpus], passage

    def shards(self, corpus: int) -> list[IndexedDataset]:
        """The files that a corpus, by its place in `names`, is trained on, in order."""
        return list(dict.fromkeys(segment.shard for segment in self.training[corpus].stream.segments))

    def locate_held_out(self, samples_per_corpus: int) -> Locations:
        """Where the first `samples_per_corpus` validation samples of each corpus lie, or all where there are fewer."""
        counts = [min(samples_per_corpus, source.samples_per_epoch) for source in self.validation]
        windows = [source.locate(np.arange(count)) for source, count in zip(self.validation, counts, strict=True)]
        return Locations(
            np.repeat(np.arange(len(counts)), counts),
            np.concatenate([window.epoch for window in windows]),
            np.concatenate([window.start for window in windows]),
        )

    def _open(self, plan: Plan, corpus: Standing, shards: Shards, vocabulary_size: int) -> None:
        def stream(places: Sequence[int], *, held_out: bool = False) -> Stream:
            records = [plan.shards[place] for place in places]
            parts = (_segments(record, shards.planned(record), held_out) for record in records)
            return Stream(list(chain.from_iterable(parts)), vocabulary_size)

        length, label = self.version.sequence_length, (plan.seed, corpus.name)
        training = Samples(
            stream(corpus.shards),
            length,
            *label,
            "training",
            epoch=corpus.epoch,
            position=corpus.position,
            epoch_stream=stream(corpus.epoch_shards) if corpus.epoch_shards != corpus.shards else None,
        )
        self.training.append(training)
        self.validation.append(Samples(stream(corpus.shards, held_out=True), length, *label, "validation"))


def _segments(record: Shard, dataset: IndexedDataset, held_out: bool) -> list[Segment]:
    """The parts of a shard that are held out, or those that are not."""
    bounds = [*chain.from_iterable(record.held_out)]
    if not held_out:
        bounds = [0, *bounds, record.tokens]
    return [Segment(dataset, first, end - first) for first, end in zip(bounds[::2], bounds[1::2], strict=True)]
