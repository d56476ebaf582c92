"""Sample number -> sequence_length + 1 tokens: a pure function of the seed, the corpus' name and its files.

A corpus is one stream of tokens, its shards end to end, read as a circle. An epoch cuts it into windows of
`sequence_length` tokens, from an offset of its own, and visits them in a permutation of its own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from typing import NamedTuple

import numpy as np

from megatron_dsmath.data.held_out import held_out_runs
from megatron_dsmath.data.indexed import IndexedDataset
from megatron_dsmath.data.permutation import IntArray, permute, random_words
from megatron_dsmath.errors import DataError, IndexedDatasetError


class Sample(NamedTuple):
    """`tokens`: int64 [sequence_length + 1]; inputs are all but the last, targets all but the first.

    `document_starts`: int64, rising: 0, and every position in `tokens` at which a document begins (the last too).
    """

    tokens: IntArray
    document_starts: IntArray


class Windows(NamedTuple):
    """Where samples lie, each int64 [n]: in which epoch, at which place, from which token of the stream on."""

    epoch: IntArray
    window: IntArray
    start: IntArray


class Segment(NamedTuple):
    """`token_count` tokens of a shard, from `start` on: whole documents."""

    shard: IndexedDataset
    start: int
    token_count: int


class Stream:
    """Segments of shards end to end, and round again."""

    def __init__(self, segments: Sequence[Segment], vocabulary_size: int) -> None:
        self.segments = [segment for segment in segments if segment.token_count]
        self.vocabulary_size = vocabulary_size
        *self._starts, self.token_count = accumulate((part.token_count for part in self.segments), initial=0)

    def read(self, start: int, token_count: int) -> Sample:
        """The `token_count` tokens from token `start` on; after the last token comes the first.

        Raises IndexedDatasetError, naming shard and document, for an id beyond the vocabulary.
        """
        tokens = np.empty(token_count, np.int64)
        document_starts = [np.zeros(1, np.int64)]
        index = bisect_right(self._starts, start) - 1
        skipped, filled = start - self._starts[index], 0
        while filled < token_count:
            shard, segment_start, segment_count = self.segments[index % len(self.segments)]
            first = segment_start + skipped
            last = min(first + token_count - filled, segment_start + segment_count)
            tokens[filled : filled + last - first] = shard.tokens[first:last]
            self._require_known_tokens(tokens[filled : filled + last - first], shard, first)
            document_starts.append(_document_starts_between(shard, first, last) - first + filled)
            index, skipped, filled = index + 1, 0, filled + last - first
        return Sample(tokens, np.unique(np.concatenate(document_starts)))

    def _require_known_tokens(self, tokens: IntArray, shard: IndexedDataset, first: int) -> None:
        unsigned = tokens.view(np.uint64)  # a negative id is then beyond every vocabulary
        if unsigned.max() < self.vocabulary_size:
            return
        place = int(unsigned.argmax())
        raise IndexedDatasetError(
            "a token id is beyond the model's vocabulary",
            where=f"{shard.prefix}.bin, document {_documents_before(shard, first + place + 1) - 1:,}",
            found=f"{tokens[place]:,}",
            expected=f"0 to {self.vocabulary_size - 1:,} (model.vocabulary_size {self.vocabulary_size:,})",
            fix="tokenize the corpus with the tokenizer of this model",
        )


class Samples:
    """The samples of a stream, numbered on through the epochs.

    Stride is `sequence_length`: in an epoch every token is an input at most once and a target at most once. Cut are
    the token_count % sequence_length tokens left after the last window; offsets spread that cut over the stream.
    """

    def __init__(self, stream: Stream, sequence_length: int, *label: object) -> None:
        self.stream = stream
        self.sequence_length = sequence_length
        self.samples_per_epoch = stream.token_count // sequence_length if stream.token_count > sequence_length else 0
        self._label = label

    def locate(self, numbers: IntArray) -> Windows:
        """Where the samples `numbers`, int64 [n], lie; needs no read, and no longer for a late number than for 0."""
        epochs, positions = divmod(numbers, self.samples_per_epoch)
        windows, starts = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            rows = epochs == epoch
            windows[rows] = permute(positions[rows], self.samples_per_epoch, random_words(*self._label, "order", epoch))
            offset = int(random_words(*self._label, "offset", epoch)[0]) % self.stream.token_count
            starts[rows] = (offset + windows[rows] * self.sequence_length) % self.stream.token_count
        return Windows(epochs, windows, starts)

    def read(self, start: int) -> Sample:
        """The sample whose first token is token `start` of the stream, as `locate` tells it."""
        return self.stream.read(start, self.sequence_length + 1)

    def sample(self, number: int) -> Sample:
        """Sample `number`, from 0 on; raises as `Stream.read`."""
        return self.read(int(self.locate(np.array([number])).start[0]))


class Corpus:
    """One source of the mixture: `training` samples, and `validation` samples of documents never trained on."""

    def __init__(
        self,
        name: str,
        shards: Sequence[IndexedDataset],
        sequence_length: int,
        held_out_share: float,
        seed: int,
        vocabulary_size: int,
    ) -> None:
        """Split the shards' documents (`held_out_share` of them for validation). Raises DataError if too small."""
        self.name = name
        runs = held_out_runs(sum(shard.document_count for shard in shards), held_out_share, seed, name)
        training, held_out = _split(shards, runs)
        self.training = Samples(Stream(training, vocabulary_size), sequence_length, seed, name, "training")
        self.validation = Samples(Stream(held_out, vocabulary_size), sequence_length, seed, name, "validation")
        self._require_a_sample(self.training, "the corpus is too small for one sample", "add documents")
        if held_out_share:
            self._require_a_sample(
                self.validation,
                "the held-out part of the corpus is too small for one sample",
                "raise data.held_out_share, or set it to 0.0 to train without validation",
            )

    def _require_a_sample(self, samples: Samples, what: str, fix: str) -> None:
        if not samples.samples_per_epoch:
            raise DataError(
                what,
                where=f"data.corpora.{self.name}",
                found=f"{samples.stream.token_count:,} tokens",
                expected=f"at least {samples.sequence_length + 1:,} (data.sequence_length + 1)",
                fix=f"{fix}, or shorten data.sequence_length",
            )


def _document_start(shard: IndexedDataset, document: int) -> int:
    """The first token of a document; for the number of documents, the number of tokens."""
    sequence = int(shard.document_indices[document])
    return int(shard.offsets[sequence]) // shard.dtype.itemsize if sequence < len(shard) else shard.token_count


def _documents_before(shard: IndexedDataset, token: int) -> int:
    """How many documents begin before `token`. Not numpy's bisection: that would copy the index, unaligned on disk."""
    return bisect_left(range(shard.document_count), token, key=partial(_document_start, shard))


def _document_starts_between(shard: IndexedDataset, first: int, last: int) -> IntArray:
    """The tokens of the shard, from `first` to before `last`, at which a document begins."""
    sequences = shard.document_indices[_documents_before(shard, first) : _documents_before(shard, last)]
    return shard.offsets[sequences] // shard.dtype.itemsize


def _split(shards: Sequence[IndexedDataset], runs: Sequence[range]) -> tuple[list[Segment], list[Segment]]:
    """Segments for training and segments held out; `runs` are document numbers counted on through the shards."""
    parts: tuple[list[Segment], list[Segment]] = ([], [])
    firsts = accumulate((shard.document_count for shard in shards), initial=0)
    for shard, (first, end) in zip(shards, pairwise(firsts), strict=True):
        bounds = [min(max(bound, first), end) for run in runs for bound in (run.start, run.stop)]
        tokens = [_document_start(shard, bound - first) for bound in (first, *bounds, end)]
        for index, (start, stop) in enumerate(pairwise(tokens)):
            parts[index % 2].append(Segment(shard, start, stop - start))
    return parts
