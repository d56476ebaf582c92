"""Returns a rank's microbatches of a step of a mixture. The only state is the plan and the run's next sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from megatron_dsmath.data.indexed.dataset import IndexedDataset
from megatron_dsmath.data.mixture.corpus_shards import Shards
from megatron_dsmath.data.mixture.microbatch import PADDING, Microbatch
from megatron_dsmath.data.mixture.mixture_plan import NO_END, CorpusPosition, MixturePlan, Shard
from megatron_dsmath.data.mixture.permutation import IntArray
from megatron_dsmath.data.mixture.samples import CorpusSamples, Passage, Sample, Segment, TokenStream
from megatron_dsmath.errors import DsmathError, LayoutError, raise_all


class MixtureBatches:
    """The batches of a mixture; see `RunBatches`."""

    def __init__(
        self, plan: MixturePlan, shards: Shards, vocabulary_size: int, validated: Sequence[str] | None = None
    ) -> None:
        """Open the newest version of the plan, others on demand. Raises as `Shards.open_planned`.

        `validated`: the corpora of the validation; default: those of the newest version.
        """
        self.plan = plan
        self.group_names = plan.names
        self._shards, self._vocabulary_size, self._validated = shards, vocabulary_size, validated
        self._mixtures: dict[int, Mixture] = {}
        newest = self.mixture(len(plan.versions) - 1)
        self.validation = self._open_validation(newest.names if validated is None else validated)

    def with_plan(self, plan: MixturePlan) -> MixtureBatches:
        """Return the batches of a later plan; open files are reused."""
        return MixtureBatches(plan, self._shards, self._vocabulary_size, self._validated)

    def step_batches(
        self, first_sample: int, samples: int, microbatch_sequences: int, data_rank: int, data_size: int
    ) -> list[Microbatch]:
        """Return this rank's microbatches of the step that reads `samples` samples from `first_sample` on.

        All are drawn from the version that is valid at `first_sample`. The same microbatch of all ranks holds
        consecutive samples, as in Megatron. Raises LayoutError if the samples do not divide, and IndexedDatasetError
        for a token id beyond the vocabulary.
        """
        require_whole_microbatches(samples, microbatch_sequences, data_size)
        layout = (-1, data_size, microbatch_sequences)
        numbers = np.arange(first_sample, first_sample + samples).reshape(layout)[:, data_rank].ravel()
        mixture = self.mixture(self.plan.version_at(first_sample))
        rows = mixture.locate(numbers)
        sources = dict(zip(mixture.names, mixture.training, strict=True))
        return list(self._microbatches(sources, numbers, rows, microbatch_sequences))

    def validation_batches(
        self, sequences_per_corpus: int, microbatch_sequences: int, data_rank: int, data_size: int
    ) -> list[Microbatch]:
        """Return this rank's microbatches of up to `sequences_per_corpus` held-out sequences per corpus.

        The corpora are those of all phases. Every rank gets equally many microbatches; the last ones are filled up with
        PADDING. Raises as `step_batches`.
        """
        located = locate_held_out(list(self.validation.values()), sequences_per_corpus)
        count, layout = len(located.corpus), (-1, data_size, microbatch_sequences)
        padding = -count % (microbatch_sequences * data_size)
        numbers = np.pad(np.arange(count), (0, padding), constant_values=PADDING).reshape(layout)[:, data_rank].ravel()
        rows = Locations(*(part[numbers] for part in located))
        return list(self._microbatches(self.validation, numbers, rows, microbatch_sequences))

    def validation_loss(self, sample: int, whole: float, by_name: Mapping[str, float | None]) -> float:
        """Return the mean loss of the corpora, weighted as in the mixture of the last step before `sample`.

        All corpora are validated with equally many samples, so `whole`, the mean over all targets, is not comparable
        with the training loss.
        """
        blend = self.plan.versions[self.plan.version_at(max(0, sample - 1))].blend
        shares = zip(blend.names, blend.shares, strict=True)
        return sum(float(share) * loss for name, share in shares if (loss := by_name[name]) is not None)

    def epochs(self, sample: int) -> dict[str, float]:
        """Return how often each corpus was read before `sample`; 2.33 is two and a third."""
        return {total.name: total.epochs for total in self.plan.totals(sample)}

    def passages(self, sample: int) -> Iterator[dict[str, Any]]:
        """Yield the location of each passage of a sample, document by document."""
        for corpus, passage in self.read_passages(sample):
            yield {
                "corpus": corpus,
                "shard": str(passage.prefix),
                "document": passage.document,
                "first_token": passage.first,
                "end_token": passage.end,
            }

    def read_passages(self, sample: int) -> Iterator[tuple[str, Passage]]:
        """Yield the name of the corpus and each passage of a sample, document by document."""
        mixture = self.mixture(self.plan.version_at(sample))
        corpus, epoch, start = (int(column[0]) for column in mixture.locate(np.array([sample])))
        stream = mixture.training[corpus].stream_of(epoch)
        for passage in stream.passages(start, mixture.version.sequence_length + 1):
            yield mixture.names[corpus], passage

    def tokens(self, samples: IntArray) -> IntArray:
        """See `RunBatches`; all samples are drawn from the version that is valid at the first one."""
        mixture = self.mixture(self.plan.version_at(int(samples[0])))
        locations = zip(*(column.tolist() for column in mixture.locate(samples)), strict=True)
        streams = [(mixture.training[corpus].stream_of(epoch), start) for corpus, epoch, start in locations]
        return np.stack([stream.tokens(start, mixture.version.sequence_length + 1) for stream, start in streams])

    def mixture(self, version: int) -> Mixture:
        """Return a version of the plan, opened once."""
        if version not in self._mixtures:
            self._mixtures[version] = Mixture(self.plan, version, self._shards, self._vocabulary_size)
        return self._mixtures[version]

    def _open_validation(self, names: Sequence[str]) -> dict[str, CorpusSamples]:
        """Return the held-out samples of the corpora with these names; all have the newest sequence length."""
        length, found = self.plan.versions[-1].sequence_length, dict[str, CorpusSamples]()
        for name in names:
            version = self.plan.last_version_with(name, NO_END)
            if version is not None:  # else only an earlier phase of a changed run file reads it
                corpus = next(corpus for corpus in self.plan.versions[version].corpora if corpus.name == name)
                stream = _stream(self.plan, corpus.shards, self._shards, self._vocabulary_size, held_out=True)
                found[name] = CorpusSamples(stream, length, self.plan.seed, name, "validation")
        return found

    def _microbatches(
        self, sources: Mapping[str, CorpusSamples], numbers: IntArray, rows: Locations, size: int
    ) -> Iterator[Microbatch]:
        samples = list(sources.values())
        length = samples[0].sequence_length
        padding = Sample(np.zeros(length + 1, np.int64), np.zeros(1, np.int64))
        group_of_corpus = np.array([self.group_names.index(name) for name in sources], np.int32)
        groups = np.where(numbers == PADDING, np.int32(PADDING), group_of_corpus[rows.corpus])
        for first in range(0, len(numbers), size):
            part = slice(first, first + size)
            locations = zip(*(column[part].tolist() for column in (numbers, *rows)), strict=True)
            read = [
                padding if number == PADDING else samples[corpus].stream_of(epoch).read(start, length + 1)
                for number, corpus, epoch, start in locations
            ]
            yield Microbatch(
                tokens=np.stack([sample.tokens for sample in read]),
                loss_mask=np.repeat(groups[part, None] != PADDING, length, axis=1),
                groups=groups[part, None, None],  # all targets of a sequence belong to its corpus
                document_starts=[sample.document_starts for sample in read],
                samples=numbers[part],
            )


class Locations(NamedTuple):
    """The locations of samples, each int64 [n]: corpus (index into `Mixture.names`), epoch, first token."""

    corpus: IntArray
    epoch: IntArray
    start: IntArray


class Mixture:
    """The corpora of one version of a plan; `training` holds the samples of each of `names`."""

    def __init__(self, plan: MixturePlan, version: int, shards: Shards, vocabulary_size: int) -> None:
        """Open every shard of the version. Raises the errors of `Shards.open_planned`, all at once."""
        self.version = plan.versions[version]
        self.names = self.version.blend.names
        self.training: list[CorpusSamples] = []
        errors: list[DsmathError] = []
        for corpus in self.version.corpora:
            try:
                self._open(plan, corpus, shards, vocabulary_size)
            except DsmathError as error:
                errors.append(error)
        raise_all(errors)

    def locate(self, samples: IntArray) -> Locations:
        """Return the locations of the `samples` of the run, int64 [n], without reading files."""
        draw = self.version.blend.locate(samples - self.version.first_sample)
        locations = Locations(draw.corpus, np.empty_like(samples), np.empty_like(samples))
        for corpus, training in enumerate(self.training):
            rows = draw.corpus == corpus
            windows = training.locate(draw.number[rows])
            locations.epoch[rows], locations.start[rows] = windows.epoch, windows.start
        return locations

    def training_shards(self, corpus: int) -> list[IndexedDataset]:
        """Return the training shards of the corpus with this index in `names`, in order."""
        return list(dict.fromkeys(segment.shard for segment in self.training[corpus].stream.segments))

    def _open(self, plan: MixturePlan, corpus: CorpusPosition, shards: Shards, vocabulary_size: int) -> None:
        stream = _stream(plan, corpus.shards, shards, vocabulary_size)
        started = corpus.epoch_shards != corpus.shards
        self.training.append(
            CorpusSamples(
                stream,
                self.version.sequence_length,
                plan.seed,
                corpus.name,
                "training",
                epoch=corpus.epoch,
                position=corpus.position,
                epoch_stream=_stream(plan, corpus.epoch_shards, shards, vocabulary_size) if started else None,
            )
        )


def locate_held_out(sources: Sequence[CorpusSamples], samples_per_corpus: int) -> Locations:
    """Return the locations of the first validation samples of each corpus, at most `samples_per_corpus` each."""
    counts = [min(samples_per_corpus, source.samples_per_epoch) for source in sources]
    windows = [source.locate(np.arange(count)) for source, count in zip(sources, counts, strict=True)]
    return Locations(
        np.repeat(np.arange(len(counts)), counts),
        np.concatenate([window.epoch for window in windows]),
        np.concatenate([window.start for window in windows]),
    )


def _stream(
    plan: MixturePlan, indices: Sequence[int], shards: Shards, vocabulary_size: int, *, held_out: bool = False
) -> TokenStream:
    """Return the training or the held-out tokens of these shards of the plan."""
    records = [plan.shards[index] for index in indices]
    parts = (_segments(record, shards.open_planned(record), held_out) for record in records)
    return TokenStream(list(chain.from_iterable(parts)), vocabulary_size)


def _segments(record: Shard, dataset: IndexedDataset, held_out: bool) -> list[Segment]:
    """Return the held-out segments of a shard, or all others."""
    bounds = [*chain.from_iterable(record.held_out)]
    if not held_out:
        bounds = [0, *bounds, record.tokens]
    return [Segment(dataset, first, end - first) for first, end in zip(bounds[::2], bounds[1::2], strict=True)]


def require_whole_microbatches(samples: int, microbatch_sequences: int, data_size: int) -> None:
    """Raise LayoutError unless the samples of a step divide into microbatches of every data-parallel rank."""
    samples_at_once = microbatch_sequences * data_size
    if samples % samples_at_once:
        raise LayoutError(
            "the samples of a step do not divide into microbatches",
            where="parallel.microbatch_sequences",
            found=f"{samples} samples, {data_size} data-parallel ranks x microbatches of {microbatch_sequences}",
            expected=f"a multiple of {samples_at_once} samples",
            fix="change schedule.sequences_per_step or parallel.microbatch_sequences",
        )
