"""Maps the number of a sample of a corpus to its tokens: a pure function of the seed, the corpus' name and its files.

The shards of a corpus form one circular stream of tokens. Each epoch cuts the stream into windows of `sequence_length`
tokens, starting at its own offset, and reads the windows in its own permutation.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_dsmath.data.indexed.dataset import IndexedDataset
from megatron_dsmath.data.mixture.permutation import IntArray, permute, random_words
from megatron_dsmath.errors import IndexedDatasetError


class Sample(NamedTuple):
    """`tokens`: int64 [sequence_length + 1]; inputs are all but the last token, targets all but the first.

    `document_starts`: int64, ascending: 0 and every index into `tokens` at which a document begins.
    """

    tokens: IntArray
    document_starts: IntArray


class Windows(NamedTuple):
    """The locations of samples, each int64 [n]: epoch, index of the window, first token in the epoch's stream."""

    epoch: IntArray
    window: IntArray
    start: IntArray


class Segment(NamedTuple):
    """`token_count` tokens of a shard from token `start` on."""

    shard: IndexedDataset
    start: int
    token_count: int


class Passage(NamedTuple):
    """The tokens [first, end) of one document, counted within the document."""

    prefix: Path
    document: int
    first: int
    end: int
    tokens: IntArray


def samples_per_epoch(token_count: int, sequence_length: int) -> int:
    """Return the number of windows in an epoch of `token_count` tokens; a window reads one token more."""
    return token_count // sequence_length if token_count > sequence_length else 0


class TokenStream:
    """Segments of shards, joined into a circular stream of tokens."""

    def __init__(self, segments: Sequence[Segment], vocabulary_size: int) -> None:
        self.segments = [segment for segment in segments if segment.token_count]
        self.vocabulary_size = vocabulary_size
        *self._starts, self.token_count = accumulate((part.token_count for part in self.segments), initial=0)

    def read(self, start: int, token_count: int) -> Sample:
        """Read `token_count` tokens from `start` on; the first token follows the last. Raises as `tokens`."""
        document_starts = [np.zeros(1, np.int64)]
        filled = 0
        for shard, first, count in self._parts(start, token_count):
            document_starts.append(document_starts_between(shard, first, first + count) - first + filled)
            filled += count
        return Sample(self.tokens(start, token_count), np.unique(np.concatenate(document_starts)))

    def tokens(self, start: int, token_count: int) -> IntArray:
        """Read the same tokens without document starts, which is faster: int64 [token_count].

        Raises IndexedDatasetError with shard and document for a token id beyond the vocabulary.
        """
        tokens = np.empty(token_count, np.int64)
        filled = 0
        for shard, first, count in self._parts(start, token_count):
            tokens[filled : filled + count] = shard.tokens[first : first + count]
            self._require_known_tokens(tokens[filled : filled + count], shard, first)
            filled += count
        return tokens

    def passages(self, start: int, token_count: int) -> Iterator[Passage]:
        """Yield the same tokens document by document, in the order of the stream."""
        for shard, first, count in self._parts(start, token_count):
            while count:
                document = documents_before(shard, first + 1) - 1
                position = first - document_start(shard, document)
                passage_count = min(count, document_start(shard, document + 1) - first)
                tokens = shard.tokens[first : first + passage_count].astype(np.int64)
                yield Passage(shard.prefix, document, position, position + passage_count, tokens)
                first, count = first + passage_count, count - passage_count

    def _parts(self, start: int, token_count: int) -> Iterator[Segment]:
        """Yield the parts of the segments that contain these tokens."""
        index = bisect_right(self._starts, start) - 1
        skipped = start - self._starts[index]
        while token_count:
            shard, segment_start, segment_count = self.segments[index % len(self.segments)]
            count = min(token_count, segment_count - skipped)
            yield Segment(shard, segment_start + skipped, count)
            index, skipped, token_count = index + 1, 0, token_count - count

    def _require_known_tokens(self, tokens: IntArray, shard: IndexedDataset, first: int) -> None:
        unsigned = tokens.view(np.uint64)  # turns negative ids into large ones
        if unsigned.max() < self.vocabulary_size:
            return
        index = int(unsigned.argmax())
        raise IndexedDatasetError(
            "a token id is beyond the model's vocabulary",
            where=f"{shard.prefix}.bin, document {documents_before(shard, first + index + 1) - 1:,}",
            found=f"{tokens[index]:,}",
            expected=f"0 to {self.vocabulary_size - 1:,} (model.vocabulary_size {self.vocabulary_size:,})",
            fix="tokenize the corpus with the tokenizer of this model",
        )


class CorpusSamples:
    """The samples of a corpus from a position on, numbered through all epochs.

    The stride is `sequence_length`, so in an epoch every token is an input at most once and a target at most once. An
    epoch omits the token_count % sequence_length tokens after its last window; the offsets vary which these are.
    """

    def __init__(
        self,
        stream: TokenStream,
        sequence_length: int,
        *label: object,
        epoch: int = 0,
        position: int = 0,
        epoch_stream: TokenStream | None = None,
    ) -> None:
        """Start in `epoch` after its first `position` samples; `label` determines offset and order of every epoch.

        This epoch is cut from `epoch_stream` (None: from `stream`), all later ones from `stream`.
        """
        self.stream = stream
        self.sequence_length = sequence_length
        self.samples_per_epoch = samples_per_epoch(stream.token_count, sequence_length)
        self._epoch, self._position, self._epoch_stream = epoch, position, epoch_stream or stream
        self._label = label

    def locate(self, numbers: IntArray) -> Windows:
        """Return the locations of the samples `numbers`, int64 [n], without reading files."""
        left = samples_per_epoch(self._epoch_stream.token_count, self.sequence_length) - self._position
        rounds, rest = divmod(numbers - left, self.samples_per_epoch)
        epochs = np.where(numbers < left, self._epoch, self._epoch + 1 + rounds)
        positions = np.where(numbers < left, self._position + numbers, rest)
        windows, starts = np.empty_like(positions), np.empty_like(positions)
        for epoch in np.unique(epochs):
            rows, token_count = epochs == epoch, self.stream_of(epoch).token_count
            size = samples_per_epoch(token_count, self.sequence_length)
            windows[rows] = permute(positions[rows], size, random_words(*self._label, "order", epoch))
            offset = int(random_words(*self._label, "offset", epoch)[0]) % token_count
            starts[rows] = (offset + windows[rows] * self.sequence_length) % token_count
        return Windows(epochs, windows, starts)

    def read(self, number: int) -> Sample:
        """Read sample `number`. Raises as `TokenStream.tokens`."""
        windows = self.locate(np.array([number]))
        return self.stream_of(int(windows.epoch[0])).read(int(windows.start[0]), self.sequence_length + 1)

    def stream_of(self, epoch: int) -> TokenStream:
        """Return the stream whose windows `epoch` reads; a sample is sequence_length + 1 tokens from its start on."""
        return self._epoch_stream if epoch == self._epoch else self.stream


def document_start(shard: IndexedDataset, document: int) -> int:
    """Return the first token of a document; for the number of documents, the number of tokens."""
    sequence = int(shard.document_indices[document])
    return int(shard.offsets[sequence]) // shard.dtype.itemsize if sequence < len(shard) else shard.token_count


def documents_before(shard: IndexedDataset, token: int) -> int:
    """Return how many documents begin before `token`. np.searchsorted would copy the index, unaligned on disk."""
    return bisect_left(range(shard.document_count), token, key=partial(document_start, shard))


def document_starts_between(shard: IndexedDataset, first: int, end: int) -> IntArray:
    """Return the token positions in [first, end) of the shard at which a document begins."""
    sequences = shard.document_indices[documents_before(shard, first) : documents_before(shard, end)]
    return shard.offsets[sequences] // shard.dtype.itemsize
