"""Step -> this rank's microbatches. Pure: the state of the data is a plan and one number, the run's next sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from megatron_dsmath.data.indexed.dataset import IndexedDataset
from megatron_dsmath.data.mixture.corpus_shards import Shards
from megatron_dsmath.data.mixture.microbatch import PADDING, Microbatch
from megatron_dsmath.data.mixture.mixture_plan import CorpusPosition, MixturePlan, Shard
from megatron_dsmath.data.mixture.permutation import IntArray
from megatron_dsmath.data.mixture.samples import Passage, Sample, Samples, Segment, Stream
from megatron_dsmath.errors import DsmathError, LayoutError, raise_all


class Locations(NamedTuple):
    """Where samples lie, each int64 [n]: corpus (its place in `Mixture.names`), epoch, first token of its stream."""

    corpus: IntArray
    epoch: IntArray
    start: IntArray


class Mixture:
    """The corpora of a version; `training` and `validation` hold the samples of each of `names`."""

    def __init__(self, plan: MixturePlan, version: int, shards: Shards, vocabulary_size: int) -> None:
        """Open every shard of the version. Raises the errors of `Shards.open_planned`, all at once."""
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

    def _open(self, plan: MixturePlan, corpus: CorpusPosition, shards: Shards, vocabulary_size: int) -> None:
        def stream(places: Sequence[int], *, held_out: bool = False) -> Stream:
            records = [plan.shards[place] for place in places]
            parts = (_segments(record, shards.open_planned(record), held_out) for record in records)
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


class MixtureBatches:
    """The mixture of a run, opened. Nothing it says depends on ranks, microbatches or machine."""

    def __init__(self, plan: MixturePlan, shards: Shards, vocabulary_size: int) -> None:
        """Open the newest version of the plan, earlier ones on demand. Raises as `Shards.open_planned`."""
        self.plan = plan
        self.group_names = plan.names
        self._shards, self._vocabulary_size = shards, vocabulary_size
        self._mixtures: dict[int, Mixture] = {}
        self._newest = self.mixture(len(plan.versions) - 1)

    def with_plan(self, plan: MixturePlan) -> MixtureBatches:
        """The same run by a later plan, its files opened once."""
        return MixtureBatches(plan, self._shards, self._vocabulary_size)

    def validation_loss(self, whole: float, by_name: Mapping[str, float | None]) -> float:
        """Each corpus is held out with as many samples, so the mean over corpora is weighted as the newest mixture."""
        shares = zip(self._newest.names, self._newest.version.blend.shares, strict=True)
        return sum(float(share) * loss for name, share in shares if (loss := by_name[name]) is not None)

    def epochs(self, sample: int) -> dict[str, float]:
        """How often each corpus was read before `sample`; 2.33 is two and a third."""
        return {total.name: total.epochs for total in self.plan.totals(sample)}

    def passages(self, sample: int) -> Iterator[dict[str, Any]]:
        """What a sample holds, document by document."""
        for corpus, passage in self.mixture(self.plan.version_at(sample)).passages(sample):
            yield {
                "corpus": corpus,
                "shard": str(passage.shard.prefix),
                "document": passage.document,
                "first_token": passage.first,
                "end_token": passage.end,
            }

    def mixture(self, version: int) -> Mixture:
        """A version of the plan, opened."""
        if version not in self._mixtures:
            self._mixtures[version] = Mixture(self.plan, version, self._shards, self._vocabulary_size)
        return self._mixtures[version]

    def step_batches(
        self, first_sample: int, samples: int, microbatch_sequences: int, data_rank: int, data_size: int
    ) -> list[Microbatch]:
        """This rank's microbatches of a step: its part of the `samples` from `first_sample` on.

        All are drawn from the version that holds at `first_sample`. Each microbatch of all ranks together is a run of
        neighbouring samples, as in Megatron. Raises LayoutError when the samples do not divide, IndexedDatasetError
        for a token id beyond the vocabulary.
        """
        require_whole_microbatches(samples, microbatch_sequences, data_size)
        layout = (-1, data_size, microbatch_sequences)
        numbers = np.arange(first_sample, first_sample + samples).reshape(layout)[:, data_rank].ravel()
        mixture = self.mixture(self.plan.version_at(first_sample))
        rows = mixture.locate(numbers)
        return list(self._microbatches(mixture, mixture.training, numbers, rows, microbatch_sequences))

    def validation_batches(
        self, sequences_per_corpus: int, microbatch_sequences: int, data_rank: int, data_size: int
    ) -> list[Microbatch]:
        """This rank's microbatches of the newest version's held-out parts: up to `sequences_per_corpus` of each.

        Every rank gets equally many, so the last are filled up with rows of PADDING. Raises as `at`.
        """
        located = self._newest.locate_held_out(sequences_per_corpus)
        count, layout = len(located.corpus), (-1, data_size, microbatch_sequences)
        padding = -count % (microbatch_sequences * data_size)
        numbers = np.pad(np.arange(count), (0, padding), constant_values=PADDING).reshape(layout)[:, data_rank].ravel()
        rows = Locations(*(part[numbers] for part in located))
        return list(self._microbatches(self._newest, self._newest.validation, numbers, rows, microbatch_sequences))

    def _microbatches(
        self, mixture: Mixture, sources: Sequence[Samples], numbers: IntArray, rows: Locations, size: int
    ) -> Iterator[Microbatch]:
        length = mixture.version.sequence_length
        padding = Sample(np.zeros(length + 1, np.int64), np.zeros(1, np.int64))
        places = np.array([self.group_names.index(name) for name in mixture.names], np.int32)
        corpora = np.where(numbers == PADDING, np.int32(PADDING), places[rows.corpus])
        for first in range(0, len(numbers), size):
            part = slice(first, first + size)
            places_in_part = zip(*(column[part].tolist() for column in (numbers, *rows)), strict=True)
            read = [
                padding if number == PADDING else sources[corpus].read(epoch, start)
                for number, corpus, epoch, start in places_in_part
            ]
            yield Microbatch(
                tokens=np.stack([sample.tokens for sample in read]),
                loss_mask=np.repeat(corpora[part, None] != PADDING, length, axis=1),
                groups=corpora[part, None, None],  # all targets of a sequence belong to its corpus
                document_starts=[sample.document_starts for sample in read],
                samples=numbers[part],
            )


def require_whole_microbatches(samples: int, microbatch_sequences: int, data_size: int) -> None:
    """Raise LayoutError unless the samples of a step divide into microbatches of every data-parallel rank."""
    share = microbatch_sequences * data_size
    if samples % share:
        raise LayoutError(
            "the samples of a step do not divide into microbatches",
            where="parallel.microbatch_sequences",
            found=f"{samples} samples, {data_size} data-parallel ranks x microbatches of {microbatch_sequences}",
            expected=f"a multiple of {share} samples",
            fix="change schedule.sequences_per_step or parallel.microbatch_sequences",
        )
