from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from megatron_dsmath.data.tokenizing.piece_encoder import BLOCK_CHARACTERS, EncodedTexts, PieceEncoder


class BeforeCapitals:
    """Cuts before every capital A."""

    def mark_cuts(self, codes: npt.NDArray[np.uint32], cuts: npt.NDArray[np.bool_]) -> None:
        cuts[:-1] |= codes == ord("A")

    def next_cut(self, text: str, start: int) -> int:
        place = text.find("A", start)
        return len(text) if place < 0 else place


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


def test_a_long_text_is_worked_on_in_parts() -> None:
    longest = 0

    def measured(pieces: list[str]) -> EncodedTexts:
        nonlocal longest
        longest = max(longest, sum(map(len, pieces)))
        return encode_pieces(pieces)

    # Distinct pieces, so that each block asks for its own.
    text = "".join(f"A{number}" for number in range(BLOCK_CHARACTERS))
    assert PieceEncoder(BeforeCapitals(), measured).encode([text]).to_lists() == [ids_of(text)]
    assert len(text) > 5 * BLOCK_CHARACTERS
    assert longest <= 2 * BLOCK_CHARACTERS


def test_a_prefix_stands_before_every_text_that_is_not_empty() -> None:
    encoder = PieceEncoder(BeforeCapitals(), encode_pieces, prefix=" ")
    assert encoder.encode(["a", "", "A"]).to_lists() == [ids_of(" a"), [], ids_of(" A")]


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(UnicodeEncodeError):
        PieceEncoder(BeforeCapitals(), encode_pieces).encode(["a\ud800"])


def test_lists_and_arrays_hold_the_same() -> None:
    ids = [[1, 2], [], [3]]
    encoded = EncodedTexts.from_lists(ids)
    assert (encoded.tokens.tolist(), encoded.lengths.tolist()) == ([1, 2, 3], [2, 0, 1])
    assert encoded.to_lists() == ids
