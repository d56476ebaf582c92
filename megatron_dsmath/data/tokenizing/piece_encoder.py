"""Texts to token ids by pieces: texts are cut into pieces, and the ids of known pieces come from a cache.

The library (`tokenizers` or `sentencepiece`) encodes only the pieces that are not in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt


class EncodedTexts(NamedTuple):
    """The ids of several texts, concatenated: `tokens` [sum of lengths], `lengths` [texts]."""

    tokens: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def from_lists(cls, ids: Sequence[Sequence[int]]) -> EncodedTexts:
        """Concatenate the ids of each text."""
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return cls(np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())), lengths)

    def to_lists(self) -> list[list[int]]:
        """The ids of each text."""
        ids = self.tokens.tolist()
        ends = np.cumsum(self.lengths).tolist()
        return [ids[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


Codes = npt.NDArray[np.uint32]


class Splitter(Protocol):
    """Finds where texts can be cut into pieces that are encoded independently of each other."""

    def mark_cuts(self, codes: Codes, cuts: npt.NDArray[np.bool_]) -> None:
        """Mark in `cuts` [characters + 1] where pieces begin. The marks already present are the ends of texts."""

    def next_cut(self, text: str, start: int) -> int:
        """The first position from `start` at which `text` is cut in any context; its end if there is none."""


Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Item = TypeVar("Item", bound=np.generic)
EncodePieces = Callable[[list[str]], EncodedTexts]  # the ids of each piece

BLOCK_CHARACTERS = 1 << 18  # encoded together: arrays of this length fit in the cache of a core
CACHE_BYTES = 192 << 20  # per process
SHORT_BYTES = 8  # a piece of up to 8 bytes is its own 64-bit key, padded with 0xFF, which never occurs in UTF-8
PADDING = np.array([(1 << 64) - (1 << 8 * size) for size in range(SHORT_BYTES + 1)] + [(1 << 64) - 1], np.uint64)
NO_KEY = np.uint64((1 << 64) - 1)  # the key of all long pieces
NO_ROW = 0  # its key is NO_KEY
SLOT_BITS = 20
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # multiplicative hashing with the golden ratio (Knuth, TAOCP 6.4)
ROW_BYTES = 300  # memory of a piece in all tables and as a Python string, without its characters and ids


class PieceEncoder:
    """Encodes texts as the concatenation of their pieces; the ids equal those of the library that encodes a piece."""

    def __init__(
        self, splitter: Splitter, encode_pieces: EncodePieces, cache_bytes: int = CACHE_BYTES, prefix: str = ""
    ) -> None:
        """`encode_pieces` is called for pieces that are not in the cache, which uses up to `cache_bytes`.

        `prefix` is added before every text that is not empty.
        """
        self._splitter = splitter
        self._prefix = prefix
        self._cache = PieceCache(encode_pieces, cache_bytes)

    def encode(self, texts: Sequence[str]) -> EncodedTexts:
        """The ids of each text. Raises UnicodeEncodeError at a lone surrogate."""
        first_parts: list[int] = []
        parts: list[str] = []
        for text in texts:
            first_parts.append(len(parts))
            parts += self._parts(self._prefix + text if text else text)
        encoded = [self._encode_block(block) for block in _blocks(parts)]
        if not encoded:
            return EncodedTexts(np.empty(0, np.int32), np.empty(0, np.int64))
        part_lengths = np.concatenate([block.lengths for block in encoded])
        lengths = np.add.reduceat(part_lengths, first_parts)
        return EncodedTexts(np.concatenate([block.tokens for block in encoded]), lengths)

    def _parts(self, text: str) -> Iterator[str]:
        """Split a long text so that memory does not grow with it; at least one part."""
        begin = 0
        while len(text) - begin > BLOCK_CHARACTERS:
            end = self._splitter.next_cut(text, begin + BLOCK_CHARACTERS)
            yield text[begin:end]
            begin = end
        if begin < len(text) or not text:
            yield text[begin:]

    def _encode_block(self, texts: list[str]) -> EncodedTexts:
        text = "".join(texts)
        bounds = np.cumsum([0, *map(len, texts)])
        cuts = np.zeros(len(text) + 1, np.bool_)
        cuts[bounds] = True
        self._splitter.mark_cuts(code_points(text), cuts)
        begins = np.flatnonzero(cuts)
        tokens, ends = self._cache.ids(self._cache.rows(text, begins))
        token_bounds = np.append(0, ends)[np.searchsorted(begins, bounds)]
        return EncodedTexts(tokens, np.diff(token_bounds))


def code_points(text: str) -> Codes:
    """The Unicode code point of each character: [characters]."""
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


def _blocks(texts: list[str]) -> Iterator[list[str]]:
    """Group the texts, in order, into blocks of at least BLOCK_CHARACTERS; the last block may be shorter."""
    block: list[str] = []
    characters = 0
    for text in texts:
        block.append(text)
        characters += len(text)
        if characters >= BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
    if block:
        yield block


class PieceCache:
    """A table with a row for every distinct piece, and the ids of each row.

    Short pieces, about 90% of the pieces of real text, find their row with array operations: each slot of a hash table
    holds the row that used it last. All other pieces find their row in a dictionary.
    """

    def __init__(self, encode_pieces: EncodePieces, limit_bytes: int) -> None:
        """`encode_pieces` gives the ids of new pieces. The cache is emptied when it exceeds `limit_bytes`."""
        self._encode_pieces = encode_pieces
        self._limit_bytes = limit_bytes
        self._clear()

    def rows(self, text: str, cuts: Integers) -> Integers:
        """The row of each piece of `text`: [pieces]. Rows are valid until the next call.

        `cuts`: [pieces + 1], the positions, in characters, at which pieces begin, then the end of the text.
        """
        if self._size_bytes > self._limit_bytes:
            self._clear()
        raw = text.encode()
        bounds = cuts if len(raw) == len(text) else _character_starts(raw).take(cuts)
        keys = _words(raw)[bounds[:-1]] | PADDING.take(np.diff(bounds), mode="clip")
        slots = (keys * SPREAD) >> np.uint64(64 - SLOT_BITS)
        rows: Integers = self._slots.take(slots.view(np.int64))
        rows[self._keys.take(rows) != keys] = NO_ROW
        missing = np.flatnonzero(rows == NO_ROW)
        spans = zip(cuts[missing].tolist(), cuts[missing + 1].tolist(), strict=True)
        pieces = [text[begin:end] for begin, end in spans]
        self._add(list({*pieces}.difference(self._row_of)))
        rows[missing] = np.fromiter(map(self._row_of.__getitem__, pieces), np.int64, len(pieces))
        short = missing[keys[missing] != NO_KEY]
        self._keys[rows[short]] = keys[short]
        self._slots[slots[short].view(np.int64)] = rows[short]
        return rows

    def ids(self, rows: Integers) -> tuple[npt.NDArray[np.int32], Integers]:
        """The concatenated ids of all `rows`, and where those of each row end: [rows]."""
        counts = self._id_counts.take(rows)
        ends = np.cumsum(counts)
        shifts = np.repeat(self._first_ids.take(rows) - ends + counts, counts)
        return self._ids.take(shifts + np.arange(len(shifts))), ends

    def _clear(self) -> None:
        self._row_of: dict[str, int] = {}
        self._keys, self._slots = np.full(1, NO_KEY), np.full(1 << SLOT_BITS, NO_ROW)
        self._first_ids, self._id_counts = np.zeros(1, np.int64), np.zeros(1, np.int64)
        self._ids = np.zeros(1, np.int32)
        self._row_count, self._ids_end, self._size_bytes = 1, 0, 0

    def _add(self, pieces: list[str]) -> None:
        """Add rows for `pieces`, which have none."""
        ids, counts = self._encode_pieces(pieces)
        rows = slice(self._row_count, self._row_count + len(pieces))
        ids_range = slice(self._ids_end, self._ids_end + len(ids))
        self._row_of.update(zip(pieces, range(rows.start, rows.stop), strict=True))
        self._keys = _grown(self._keys, rows.stop)
        self._first_ids = _grown(self._first_ids, rows.stop)
        self._id_counts = _grown(self._id_counts, rows.stop)
        self._ids = _grown(self._ids, ids_range.stop)
        self._keys[rows] = NO_KEY
        self._first_ids[rows] = ids_range.start + np.cumsum(counts) - counts
        self._id_counts[rows] = counts
        self._ids[ids_range] = ids
        self._row_count, self._ids_end = rows.stop, ids_range.stop
        self._size_bytes += ROW_BYTES * len(pieces) + 4 * sum(map(len, pieces)) + 8 * len(ids)


def _grown(array: npt.NDArray[Item], size: int) -> npt.NDArray[Item]:
    """`array`, copied into one of length 2 * `size` if it is shorter than `size`."""
    return array if size <= len(array) else np.resize(array, 2 * size)


def _character_starts(raw: bytes) -> Integers:
    """The offset of each character in UTF-8, and the end: [characters + 1]."""
    is_start = (np.frombuffer(raw, np.uint8) & 0xC0) != 0x80
    return np.append(np.flatnonzero(is_start), len(raw))


def _words(raw: bytes) -> Words:
    """The eight bytes that begin at each byte, as an integer: [bytes], a view."""
    words: Words = np.ndarray((len(raw),), "<u8", raw + bytes(SHORT_BYTES), strides=(1,))
    return words
