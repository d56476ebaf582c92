"""Texts to ids, piece by piece: cut many texts at once, look the pieces up, ask a library for those never seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt


class EncodedTexts(NamedTuple):
    """Ids of texts end to end: `tokens` [sum of lengths], `lengths` [texts]."""

    tokens: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int64]

    @classmethod
    def from_lists(cls, ids: Sequence[Sequence[int]]) -> EncodedTexts:
        """Of the ids of each text."""
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return cls(np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())), lengths)

    def to_lists(self) -> list[list[int]]:
        """The ids of each text."""
        ids = self.tokens.tolist()
        ends = np.cumsum(self.lengths).tolist()
        return [ids[begin:end] for begin, end in zip([0, *ends], ends, strict=False)]


Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]
Item = TypeVar("Item", bound=np.generic)
EncodePieces = Callable[[list[str]], EncodedTexts]  # the ids of each piece

SHORT_BYTES = 8  # a piece of up to these many bytes is its own 64-bit key, padded with a byte that UTF-8 never has
PADDING = np.array([(1 << 64) - (1 << 8 * size) for size in range(SHORT_BYTES + 1)] + [(1 << 64) - 1], np.uint64)
NO_KEY = np.uint64((1 << 64) - 1)  # of every long piece
NO_ROW = 0  # its key is NO_KEY
SLOT_BITS = 20
SPREAD = np.uint64(0x9E3779B97F4A7C15)  # multiplicative hashing by the golden ratio (Knuth, TAOCP 6.4)
ROW_BYTES = 300  # what a piece costs in all tables and as a Python string, next to its characters and ids


class PieceCache:
    """Every distinct piece has a row, and every row has ids.

    Short pieces, nine of ten in real text, find their row by arrays alone; a slot keeps the row that used it last. All
    others, and short ones whose slot was taken, find it in a dictionary.
    """

    def __init__(self, encode_pieces: EncodePieces, limit_bytes: int) -> None:
        """`encode_pieces` gives the ids of pieces seen for the first time. The cache is emptied over `limit_bytes`."""
        self._encode_pieces = encode_pieces
        self._limit_bytes = limit_bytes
        self._clear()

    def rows(self, text: str, cuts: Integers) -> Integers:
        """The row of each piece of `text`: [pieces]. They hold until the next call.

        `cuts`: [pieces + 1], where the pieces begin, in characters, and the end of the text.
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
        places = zip(cuts[missing].tolist(), cuts[missing + 1].tolist(), strict=True)
        pieces = [text[begin:end] for begin, end in places]
        self._add(list({*pieces}.difference(self._row_of)))
        rows[missing] = np.fromiter(map(self._row_of.__getitem__, pieces), np.int64, len(pieces))
        short = missing[keys[missing] != NO_KEY]
        self._keys[rows[short]] = keys[short]
        self._slots[slots[short].view(np.int64)] = rows[short]
        return rows

    def ids(self, rows: Integers) -> tuple[npt.NDArray[np.int32], Integers]:
        """The ids of all `rows`, end to end, and where those of each row end: [rows]."""
        counts = self._id_counts.take(rows)
        ends = np.cumsum(counts)
        shifts = np.repeat(self._first_ids.take(rows) - ends + counts, counts)
        return self._ids.take(shifts + np.arange(len(shifts))), ends

    def _clear(self) -> None:
        self._row_of: dict[str, int] = {}
        self._keys = np.full(1, NO_KEY)
        self._first_ids = np.zeros(1, np.int64)
        self._id_counts = np.zeros(1, np.int64)
        self._ids = np.zeros(1, np.int32)
        self._row_count = 1
        self._ids_end = 0
        self._slots = np.full(1 << SLOT_BITS, NO_ROW)
        self._size_bytes = 0

    def _add(self, pieces: list[str]) -> None:
        """Give rows to `pieces` that have none yet."""
        ids, counts = self._encode_pieces(pieces)
        rows = slice(self._row_count, self._row_count + len(pieces))
        places = slice(self._ids_end, self._ids_end + len(ids))
        self._row_of.update(zip(pieces, range(rows.start, rows.stop), strict=True))
        self._keys = _with_room(self._keys, rows.stop)
        self._first_ids = _with_room(self._first_ids, rows.stop)
        self._id_counts = _with_room(self._id_counts, rows.stop)
        self._ids = _with_room(self._ids, places.stop)
        self._keys[rows] = NO_KEY
        self._first_ids[rows] = places.start + np.cumsum(counts) - counts
        self._id_counts[rows] = counts
        self._ids[places] = ids
        self._row_count, self._ids_end = rows.stop, places.stop
        self._size_bytes += ROW_BYTES * len(pieces) + 4 * sum(map(len, pieces)) + 8 * (places.stop - places.start)


def _with_room(array: npt.NDArray[Item], size: int) -> npt.NDArray[Item]:
    """`array`, or where it is shorter than `size` its items at the beginning of one twice as long."""
    return array if size <= len(array) else np.resize(array, 2 * size)


def _character_starts(raw: bytes) -> Integers:
    """Where each character of UTF-8 begins, and the end: [characters + 1]."""
    is_start = (np.frombuffer(raw, np.uint8) & 0xC0) != 0x80
    return np.append(np.flatnonzero(is_start), len(raw))


def _words(raw: bytes) -> Words:
    """The eight bytes from each byte on, as a number: [bytes], a view."""
    words: Words = np.ndarray((len(raw),), "<u8", raw + bytes(SHORT_BYTES), strides=(1,))
    return words


BLOCK_CHARACTERS = 1 << 18  # what is worked on together: arrays of this length stay in a core's own cache
CACHE_BYTES = 192 << 20  # of one process


class Splitter(Protocol):
    """Where texts are cut into pieces that may be encoded each for itself."""

    def mark_cuts(self, codes: npt.NDArray[np.uint32], cuts: npt.NDArray[np.bool_]) -> None:
        """Mark in `cuts` [characters + 1] where pieces begin. What is marked already is the end of a text."""

    def next_cut(self, text: str, start: int) -> int:
        """The first place from `start` on where `text` is cut whatever stands around it; its end if there is none."""


class PieceEncoder:
    """Encodes texts as the sum of their pieces. The ids are those of the library that encodes a piece."""

    def __init__(
        self, cutter: Splitter, encode_pieces: EncodePieces, cache_bytes: int = CACHE_BYTES, prefix: str = ""
    ) -> None:
        """`encode_pieces` is asked once for each distinct piece; its ids are remembered within `cache_bytes`.

        `prefix` is put before every text that is not empty.
        """
        self._cutter = cutter
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

    def _encode_block(self, texts: list[str]) -> EncodedTexts:
        text = "".join(texts)
        bounds = np.cumsum([0, *map(len, texts)])
        cuts = np.zeros(len(text) + 1, np.bool_)
        cuts[bounds] = True
        self._cutter.mark_cuts(np.frombuffer(text.encode("utf-32-le"), np.uint32), cuts)
        begins = np.flatnonzero(cuts)
        tokens, ends = self._cache.ids(self._cache.rows(text, begins))
        token_bounds = np.append(0, ends)[np.searchsorted(begins, bounds)]
        return EncodedTexts(tokens, np.diff(token_bounds))

    def _parts(self, text: str) -> Iterator[str]:
        """A long text in parts, so that memory does not grow with it; at least one part."""
        begin = 0
        while len(text) - begin > BLOCK_CHARACTERS:
            end = self._cutter.next_cut(text, begin + BLOCK_CHARACTERS)
            yield text[begin:end]
            begin = end
        if begin < len(text) or not text:
            yield text[begin:]


def _blocks(texts: list[str]) -> Iterator[list[str]]:
    """The texts in order, some together until they fill a block."""
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
