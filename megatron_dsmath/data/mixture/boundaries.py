"""Where documents begin in a shard: always by its index, never by searching for the end-of-document token."""

from __future__ import annotations

from bisect import bisect_left
from functools import partial

from megatron_dsmath.data.indexed.dataset import IndexedDataset
from megatron_dsmath.data.mixture.permutation import IntArray


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
