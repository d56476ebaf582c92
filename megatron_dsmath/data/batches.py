"""Step -> this rank's microbatches. Pure: the state of the data is a plan and one number, the run's next sample."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.mixture.mixture import Locations, Mixture
from megatron_dsmath.data.mixture.permutation import IntArray
from megatron_dsmath.data.mixture.plan import Plan
from megatron_dsmath.data.mixture.samples import Sample, Samples
from megatron_dsmath.data.mixture.shards import Shards
from megatron_dsmath.errors import LayoutError

PADDING = -1


class Microbatch(NamedTuple):
    """`tokens`: int64 [microbatch, sequence_length + 1]; inputs are all but the last, targets all but the first.

    `corpus`: int32 [microbatch], places in `Batches.names`; PADDING is a row that counts for nothing.
    `document_starts`: for each row int64, 0 included, as in `Sample`.
    `samples`: int64 [microbatch], the numbers of the rows in the run, or in the validation set.
    """

    tokens: IntArray
    corpus: npt.NDArray[np.int32]
    document_starts: list[IntArray]
    samples: IntArray

    @property
    def loss_mask(self) -> npt.NDArray[np.bool_]:
        """Whether a target is learned, which all of a row are that counts: bool [microbatch, sequence_length]."""
        return np.repeat(self.corpus[:, None] != PADDING, self.tokens.shape[1] - 1, axis=1)

    @property
    def groups(self) -> npt.NDArray[np.int32]:
        """The corpus of each row as the one group of all its targets: int32 [microbatch, 1, 1]."""
        return self.corpus[:, None, None]

    def without_targets(self) -> Microbatch:
        """The same, but that nothing of it is learned."""
        return self._replace(corpus=np.full_like(self.corpus, PADDING))


class Batches:
    """The mixture of a run, opened. Nothing it says depends on ranks, microbatches or machine."""

    def __init__(self, plan: Plan, shards: Shards, vocabulary_size: int) -> None:
        """Open the newest version of the plan, earlier ones when they are asked for. Raises as `Shards.planned`."""
        self.plan = plan
        self.names = plan.names
        self._shards, self._vocabulary_size = shards, vocabulary_size
        self._mixtures: dict[int, Mixture] = {}
        self._newest = self.mixture(len(plan.versions) - 1)

    def following(self, plan: Plan) -> Batches:
        """The same run by a later plan, its files opened once."""
        return Batches(plan, self._shards, self._vocabulary_size)

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

    def at(
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

    def validation(
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
        places = np.array([self.names.index(name) for name in mixture.names], np.int32)
        corpora = np.where(numbers == PADDING, np.int32(PADDING), places[rows.corpus])
        for first in range(0, len(numbers), size):
            part = slice(first, first + size)
            places_in_part = zip(*(column[part].tolist() for column in (numbers, *rows)), strict=True)
            read = [
                padding if number == PADDING else sources[corpus].read(epoch, start)
                for number, corpus, epoch, start in places_in_part
            ]
            tokens = np.stack([sample.tokens for sample in read])
            yield Microbatch(tokens, corpora[part], [sample.document_starts for sample in read], numbers[part])


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
