"""Sample number -> sequence_length + 1 tokens: a pure function of the seed, the corpus' name and its files.

A corpus is one stream of tokens, its shards end to end, read as a circle. An epoch cuts it into windows of
`sequence_length` tokens, from an offset of its own, and visits them in a permutation of its own.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from megatron_dsmath.data.indexed.dataset import IndexedDataset
from megatron_dsmath.data.mixture.permutation import IntArray, permute, random_words
from megatron_dsmath.errors import IndexedDatasetError


def document_start(shard: IndexedDataset, document: int) -> int:
    """The first token of a document; for the number of documents, the number of tokens."""
    sequence = int(shard.document_indices[document])
    return int(shard.offsets[sequence]) // shard.dtype.itemsize if sequence < len(shard) else shard.token_count


def documents_before(shard: IndexedDataset, token: int) -> int:
    """How many documents begin before `token`. Not numpy's bisection: that would copy the index, unaligned on disk."""
    return bisect_left(range(shard.document_count), token, key=partial(document_start, shard))


def document_starts_between(shard: IndexedDataset, first: int, end: int) -> IntArray:
    """The tokens of the shard, from `first` to before `end`, at which a document begins."""
    sequences = shard.document_indices[documents_before(shard, first) : documents_before(shard, end)]
    return shard.offsets[sequences] // shard.dtype.itemsize


class Sample(NamedTuple):
    """`tokens`: int64 [sequence_length + 1]; inputs are all but the last, targets all but the first.

    `document_starts`: int64, rising: 0, and every position in `tokens` at which a document begins (the last too).
    """

    tokens: IntArray
    document_starts: IntArray


class Windows(NamedTuple):
    """Where samples lie, each int64 [n]: in which epoch, at which place, from which token of its stream on."""

    epoch: IntArray
    window: IntArray
    start: IntArray


class Segment(NamedTuple):
    """`token_count` tokens of a shard, from `start` on: whole documents."""

    shard: IndexedDataset
    start: int
    token_count: int


class Passage(NamedTuple):
    """A run of tokens of one document: those from `first` to before `end`, counted within the document."""

    shard: IndexedDataset
    document: int
    first: int
    end: int
    tokens: IntArray


def samples_per_epoch(token_count: int, sequence_length: int) -> int:
    """How many windows an epoch over a circle of `token_count` tokens has; a window holds one token more."""
    return token_count // sequence_length if token_count > sequence_length else 0


class Stream:
    """Segments of shards end to end, and round again."""

    def __init__(self, segments: Sequence[Segment], vocabulary_size: int) -> None:
        self.segments = [segment for segment in segments if segment.token_count]
        self.vocabulary_size = vocabulary_size
        *self._starts, self.token_count = accumulate((part.token_count for part in self.segments), initial=0)

    def read(self, start: int, token_count: int) -> Sample:
        """The `token_count` tokens from token `start` on; after the last token comes the first. Raises as `tokens`."""
        document_starts = [np.zeros(1, np.int64)]
        filled = 0
        for shard, first, count in self._pieces(start, token_count):
            document_starts.append(document_starts_between(shard, first, first + count) - first + filled)
            filled += count
        return Sample(self.tokens(start, token_count), np.unique(np.concatenate(document_starts)))

    def tokens(self, start: int, token_count: int) -> IntArray:
        """The same tokens without their documents: int64 [token_count].

        Raises IndexedDatasetError, naming shard and document, for an id beyond the vocabulary.
        """
        tokens = np.empty(token_count, np.int64)
        filled = 0
        for shard, first, count in self._pieces(start, token_count):
            tokens[filled : filled + count] = shard.tokens[first : first + count]
            self._require_known_tokens(tokens[filled : filled + count], shard, first)
            filled += count
        return tokens

    def passages(self, start: int, token_count: int) -> Iterator[Passage]:
        """The same tokens document by document, in the order of the stream."""
        for shard, first, count in self._pieces(start, token_count):
            while count:
                document = documents_before(shard, first + 1) - 1
                document_first = document_start(shard, document)
                passage_count = min(count, document_start(shard, document + 1) - first)
                tokens = shard.tokens[first : first + passage_count].astype(np.int64)
                yield Passage(shard, document, first - document_first, first - document_first + passage_count, tokens)
                first, count = first + passage_count, count - passage_count

    def _pieces(self, start: int, token_count: int) -> Iterator[Segment]:
        """The parts of the segments that make up these tokens."""
        index = bisect_right(self._starts, start) - 1
        skipped = start - self._starts[index]
        while token_count:
            shard, segment_start, segment_count = self.segments[index % len(self.segments)]
            count = min(token_count, segment_count - skipped)
            yield Segment(shard, segment_start + skipped, count)
            index, skipped, token_count = index + 1, 0, token_count - count

    def _require_known_tokens(self, tokens: IntArray, shard: IndexedDataset, first: int) -> None:
        unsigned = tokens.view(np.uint64)  # a negative id is then beyond every vocabulary
        if unsigned.max() < self.vocabulary_size:
            return
        place = int(unsigned.argmax())
        raise IndexedDatasetError(
            "a token id is beyond the model's vocabulary",
            where=f"{shard.prefix}.bin, document {documents_before(shard, first + place + 1) - 1:,}",
            found=f"{tokens[place]:,}",
            expected=f"0 to {self.vocabulary_size - 1:,} (model.vocabulary_size {self.vocabulary_size:,})",
            fix="tokenize the corpus with the tokenizer of this model",
        )


class Samples:
    """The samples of a corpus, numbered on through its epochs from where it stands.

    Stride is `sequence_length`: in an epoch every token is an input at most once and a target at most once. Cut are
    the token_count % sequence_length tokens left after the last window; offsets spread that cut over the stream.
    """

    def __init__(
        self,
        stream: Stream,
        sequence_length: int,
        *label: object,
        epoch: int = 0,
        position: int = 0,
        epoch_stream: Stream | None = None,
    ) -> None:
        """Stand in `epoch`, of which `position` samples were drawn before; `label` decides the order of every epoch.

        That epoch is cut from `epoch_stream` (None: from `stream`), all later ones from `stream`.
        """
        self.stream = stream
        self.sequence_length = sequence_length
        self.samples_per_epoch = samples_per_epoch(stream.token_count, sequence_length)
        self._epoch, self._position, self._epoch_stream = epoch, position, epoch_stream or stream
        self._label = label

    def locate(self, numbers: IntArray) -> Windows:
        """Where the samples `numbers`, int64 [n], lie; needs no read, and no longer for a late number than for 0."""
        left = samples_per_epoch(self._epoch_stream.token_count, self.sequence_length) - self._position
        rounds, rest = divmod(numbers - left, self.samples_per_epoch)
        epochs = np.where(numbers < left, self._epoch, self._epoch + 1 + rounds)
        positions = np.where(numbers < left, self._position + numbers, rest)
        windows, starts = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            rows, token_count = epochs == epoch, self._stream_of(epoch).token_count
            size = samples_per_epoch(token_count, self.sequence_length)
            windows[rows] = permute(positions[rows], size, random_words(*self._label, "order", epoch))
            offset = int(random_words(*self._label, "offset", epoch)[0]) % token_count
            starts[rows] = (offset + windows[rows] * self.sequence_length) % token_count
        return Windows(epochs, windows, starts)

    def read(self, epoch: int, start: int) -> Sample:
        """The sample of `epoch` whose first token is token `start` of its stream, as `locate` tells both."""
        return self._stream_of(epoch).read(start, self.sequence_length + 1)

    def tokens(self, epoch: int, start: int) -> IntArray:
        """Its tokens alone, which is quicker: int64 [sequence_length + 1]."""
        return self._stream_of(epoch).tokens(start, self.sequence_length + 1)

    def passages(self, epoch: int, start: int) -> Iterator[Passage]:
        """The same sample, document by document."""
        return self._stream_of(epoch).passages(start, self.sequence_length + 1)

    def sample(self, number: int) -> Sample:
        """Sample `number`, from 0 on; raises as `Stream.read`."""
        windows = self.locate(np.array([number]))
        return self.read(int(windows.epoch[0]), int(windows.start[0]))

    def _stream_of(self, epoch: int) -> Stream:
        return self._epoch_stream if epoch == self._epoch else self.stream
