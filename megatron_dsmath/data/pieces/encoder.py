"""Texts to ids, piece by piece: cut many texts at once, look the pieces up, ask a library for those never seen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.pieces.cache import EncodePieces, PieceCache
from megatron_dsmath.data.pieces.encoded_texts import EncodedTexts

BLOCK_CHARACTERS = 1 << 18  # what is worked on together: arrays of this length stay in a core's own cache
CACHE_BYTES = 192 << 20  # of one process


class Cutter(Protocol):
    """Where texts are cut into pieces that may be encoded each for itself."""

    def add_cuts(self, codes: npt.NDArray[np.uint32], cuts: npt.NDArray[np.bool_]) -> None:
        """Mark in `cuts` [characters + 1] where pieces begin. What is marked already is the end of a text."""

    def next_break(self, text: str, start: int) -> int:
        """The first place from `start` on where `text` is cut whatever stands around it; its end if there is none."""


class PieceEncoder:
    """Encodes texts as the sum of their pieces. The ids are those of the library that encodes a piece."""

    def __init__(
        self, cutter: Cutter, encode_pieces: EncodePieces, cache_bytes: int = CACHE_BYTES, prefix: str = ""
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
        self._cutter.add_cuts(np.frombuffer(text.encode("utf-32-le"), np.uint32), cuts)
        begins = np.flatnonzero(cuts)
        tokens, ends = self._cache.ids(self._cache.rows(text, begins))
        token_bounds = np.append(0, ends)[np.searchsorted(begins, bounds)]
        return EncodedTexts(tokens, np.diff(token_bounds))

    def _parts(self, text: str) -> Iterator[str]:
        """A long text in parts, so that memory does not grow with it; at least one part."""
        begin = 0
        while len(text) - begin > BLOCK_CHARACTERS:
            end = self._cutter.next_break(text, begin + BLOCK_CHARACTERS)
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
