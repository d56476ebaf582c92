from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dsmath.data.tokenizing.piece_encoder import (
    BLOCK_CHARACTERS,
    ROW_BYTES,
    SLOT_BITS,
    EncodedTexts,
    PieceCache,
    PieceEncoder,
)


class BeforeCapitals:
    """Cuts before every capital A."""

    def mark_cuts(self, codes: npt.NDArray[np.uint32], cuts: npt.NDArray[np.bool_]) -> None:
        cuts[:-1] |= codes == ord("A")

    def next_cut(self, text: str, start: int) -> int:
        position = text.find("A", start)
        return len(text) if position < 0 else position


def encode_pieces(pieces: list[str]) -> EncodedTexts:
    return EncodedTexts.from_lists([list(map(ord, piece)) for piece in pieces])


def ids_of(text: str) -> list[int]:
    return list(map(ord, text))


@pytest.mark.parametrize(
    "texts",
    [
        [],
        [""],
        ["", "", "a", ""],
        ["aAb", "中A", "A", "\0"],
        ["ab" * BLOCK_CHARACTERS],  # nowhere to cut
        ["x", "Ab" * BLOCK_CHARACTERS, "", "y" * BLOCK_CHARACTERS, "zA" * (BLOCK_CHARACTERS // 2)],
    ],
)
def test_each_text_gets_its_own_ids(texts: list[str]) -> None:
    encoded = PieceEncoder(BeforeCapitals(), encode_pieces).encode(texts)
    assert encoded.to_lists() == [ids_of(text) for text in texts]
    assert (encoded.tokens.dtype, encoded.lengths.dtype) == (np.int32, np.int64)


def test_a_long_text_is_encoded_in_parts() -> None:
    longest = 0

    def measured(pieces: list[str]) -> EncodedTexts:
        nonlocal longest
        longest = max(longest, sum(map(len, pieces)))
        return encode_pieces(pieces)

    # Distinct pieces, so that each block encodes its own.
    text = "".join(f"A{number}" for number in range(BLOCK_CHARACTERS))
    assert PieceEncoder(BeforeCapitals(), measured).encode([text]).to_lists() == [ids_of(text)]
    assert len(text) > 5 * BLOCK_CHARACTERS
    assert longest <= 2 * BLOCK_CHARACTERS


def test_the_prefix_is_added_to_every_text_that_is_not_empty() -> None:
    encoder = PieceEncoder(BeforeCapitals(), encode_pieces, prefix=" ")
    assert encoder.encode(["a", "", "A"]).to_lists() == [ids_of(" a"), [], ids_of(" A")]


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        PieceEncoder(BeforeCapitals(), encode_pieces).encode(["a\ud800"])


def test_lists_and_arrays_contain_the_same_ids() -> None:
    ids = [[1, 2], [], [3]]
    encoded = EncodedTexts.from_lists(ids)
    assert (encoded.tokens.tolist(), encoded.lengths.tolist()) == ([1, 2, 3], [2, 0, 1])
    assert encoded.to_lists() == ids


def cached_ids_of(piece: str) -> list[int]:
    """0 to 3 ids, different for each piece in these tests."""
    return [len(piece), *map(ord, piece[:2])][: len(piece) % 4]


def new_cache(limit_bytes: int = 1 << 30) -> tuple[PieceCache, list[str]]:
    asked: list[str] = []

    def encode_pieces(pieces: list[str]) -> EncodedTexts:
        asked.extend(pieces)
        return EncodedTexts.from_lists([cached_ids_of(piece) for piece in pieces])

    return PieceCache(encode_pieces, limit_bytes), asked


def look_up(cache: PieceCache, pieces: list[str]) -> list[list[int]]:
    tokens, ends = cache.ids(cache.rows("".join(pieces), np.cumsum([0, *map(len, pieces)])))
    return [part.tolist() for part in np.split(tokens, ends)[:-1]]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.lists(st.text("ab\0é中\U0001f600", min_size=1, max_size=10)), max_size=4))
def test_every_piece_gets_its_own_ids(texts: list[list[str]]) -> None:
    cache, asked = new_cache()
    for pieces in texts:
        assert look_up(cache, pieces) == [cached_ids_of(piece) for piece in pieces]
    assert sorted(asked) == sorted({piece for pieces in texts for piece in pieces})  # each was encoded once


def test_pieces_with_the_same_beginning_or_end_are_distinguished() -> None:
    cache, _ = new_cache()
    pieces = ["\0" * size for size in range(1, 20)] + ["a" * size for size in range(1, 20)] + ["\0a", "a\0", "abcdefgh"]
    pieces += ["abcdefghi", "abcdefghj", "é" * 4, "é" * 5]
    for _ in range(2):
        assert look_up(cache, pieces) == [cached_ids_of(piece) for piece in pieces]


def test_pieces_that_share_a_slot_are_encoded_once() -> None:
    cache, asked = new_cache()
    pieces = [f"{number:x}" for number in range(1 << SLOT_BITS - 2)]  # a tenth of these share a slot with another
    for _ in range(2):
        tokens, _ = cache.ids(cache.rows("".join(pieces), np.cumsum([0, *map(len, pieces)])))
        assert tokens.tolist() == [identifier for piece in pieces for identifier in cached_ids_of(piece)]
    assert len(asked) == len(pieces)


def test_the_cache_is_emptied_when_it_exceeds_its_limit() -> None:
    cache, asked = new_cache(limit_bytes=10 * ROW_BYTES)
    for number in range(100):
        assert look_up(cache, [f"piece {number}", "x"]) == [cached_ids_of(f"piece {number}"), cached_ids_of("x")]
    assert 8 <= asked.count("x") <= 25  # 200 pieces at ten or fewer a filling, and never all of them again


def test_long_pieces_count_towards_the_limit_of_the_cache() -> None:
    cache, asked = new_cache(limit_bytes=1 << 16)
    for _ in range(3):
        look_up(cache, ["a" * 100_000])
    assert len(asked) == 3  # each call emptied the cache
