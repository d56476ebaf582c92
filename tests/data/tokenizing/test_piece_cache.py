from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dsmath.data.tokenizing.piece_encoder import ROW_BYTES, SLOT_BITS, EncodedTexts, PieceCache


def ids_of(piece: str) -> list[int]:
    """Of 0 to 3 ids, other for each piece that a test has."""
    return [len(piece), *map(ord, piece[:2])][: len(piece) % 4]


def new_cache(limit_bytes: int = 1 << 30) -> tuple[PieceCache, list[str]]:
    asked: list[str] = []

    def encode_pieces(pieces: list[str]) -> EncodedTexts:
        asked.extend(pieces)
        return EncodedTexts.from_lists([ids_of(piece) for piece in pieces])

    return PieceCache(encode_pieces, limit_bytes), asked


def look_up(cache: PieceCache, pieces: list[str]) -> list[list[int]]:
    tokens, ends = cache.ids(cache.rows("".join(pieces), np.cumsum([0, *map(len, pieces)])))
    return [part.tolist() for part in np.split(tokens, ends)[:-1]]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.text("ab\0é中\U0001f600", min_size=1, max_size=10)), max_size=4))
def test_every_piece_gets_its_own_ids(texts: list[list[str]]) -> None:
    cache, asked = new_cache()
    for pieces in texts:
        assert look_up(cache, pieces) == [ids_of(piece) for piece in pieces]
    assert sorted(asked) == sorted({piece for pieces in texts for piece in pieces})  # each was asked for once


def test_pieces_that_begin_or_end_alike_are_told_apart() -> None:
    cache, _ = new_cache()
    pieces = ["\0" * size for size in range(1, 20)] + ["a" * size for size in range(1, 20)] + ["\0a", "a\0", "abcdefgh"]
    pieces += ["abcdefghi", "abcdefghj", "é" * 4, "é" * 5]
    for _ in range(2):
        assert look_up(cache, pieces) == [ids_of(piece) for piece in pieces]


def test_more_pieces_than_slots_are_still_asked_for_once() -> None:
    cache, asked = new_cache()
    pieces = [f"{number:x}" for number in range(1 << SLOT_BITS - 2)]  # a tenth of these share a slot with another
    for _ in range(2):
        tokens, _ = cache.ids(cache.rows("".join(pieces), np.cumsum([0, *map(len, pieces)])))
        assert tokens.tolist() == [identifier for piece in pieces for identifier in ids_of(piece)]
    assert len(asked) == len(pieces)


def test_the_cache_is_emptied_when_it_outgrows_its_limit() -> None:
    cache, asked = new_cache(limit_bytes=10 * ROW_BYTES)
    for number in range(100):
        assert look_up(cache, [f"piece {number}", "x"]) == [ids_of(f"piece {number}"), ids_of("x")]
    assert 8 <= asked.count("x") <= 25  # 200 pieces at ten or fewer a filling, and never all of them anew


def test_the_cache_is_bounded_however_long_a_piece_is() -> None:
    cache, asked = new_cache(limit_bytes=1 << 16)
    for _ in range(3):
        look_up(cache, ["a" * 100_000])
    assert len(asked) == 3  # each had pushed the one before out
