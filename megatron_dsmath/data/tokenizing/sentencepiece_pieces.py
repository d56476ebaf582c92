"""The pieces of a SentencePiece model: where a text may be cut, and the model asked for many pieces at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.tokenizing.piece_encoder import EncodedTexts, EncodePieces, PieceEncoder

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

GROUPS = 1 << 11  # characters are told apart by their lowest 11 bits: cuts are missed, never made wrongly
WINDOW_CHARACTERS = 1 << 12
NEVER_JOINED = "\U0010ffff"  # no character, by the Unicode Standard: a model gives the ids of its four bytes
SPACE_SYMBOL = "▁"  # what the model makes of a space

# Numbers of fields and values in sentencepiece_model.proto.
TRAINER, NORMALIZER = 2, 3
MODEL_TYPE, BPE, WHITESPACE_AS_SUFFIX, BYTE_FALLBACK = 3, 2, 24, 35
CHARACTER_MAP, DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES, ESCAPE_WHITESPACES = 2, 3, 4, 5

Codes = npt.NDArray[np.uint32]
Message = dict[int, int | bytes]


class SentencePieceSplitter(NamedTuple):
    """The cuts of one model: a `Splitter` (see piece_encoder).

    `joined`: [GROUPS * GROUPS], whether a piece of the vocabulary holds two characters one after the other.
    `dummy_prefix`: whether the model puts a space before a text.
    """

    joined: npt.NDArray[np.bool_]
    dummy_prefix: bool

    def mark_cuts(self, codes: Codes, cuts: npt.NDArray[np.bool_]) -> None:
        """Mark in `cuts` [characters + 1] where pieces begin."""
        groups = (codes % GROUPS).astype(np.int64)
        cuts[1:-1] |= ~self.joined.take(groups[:-1] * GROUPS + groups[1:])

    def next_cut(self, text: str, start: int) -> int:
        """The next cut: all of them depend on two characters alone."""
        for begin in range(max(start - 1, 0), len(text), WINDOW_CHARACTERS):
            codes = _codes(text[begin : begin + WINDOW_CHARACTERS + 1])
            cuts = np.zeros(len(codes) + 1, np.bool_)
            self.mark_cuts(codes, cuts)
            if cuts.any():
                return begin + int(np.argmax(cuts))
        return len(text)


def build_splitter(model: bytes, pieces: Sequence[str]) -> SentencePieceSplitter | None:
    """The cuts of a `.model` that the library has loaded, with all its `pieces`; None where they are not proved.

    Proved are BPE models with byte fallback (else unknown neighbours become one id) whose normalizer changes nothing
    but spaces, each into its symbol, whatever stands around it; and no piece may hold `NEVER_JOINED`.
    """
    messages = [(number, value) for number, value in _fields(model) if number in (TRAINER, NORMALIZER)]
    trainer, normalizer = (_merged(messages, number) for number in (TRAINER, NORMALIZER))
    if (trainer.get(MODEL_TYPE), trainer.get(BYTE_FALLBACK), trainer.get(WHITESPACE_AS_SUFFIX, 0)) != (BPE, 1, 0):
        return None
    whitespace = normalizer.get(REMOVE_EXTRA_WHITESPACES, 1), normalizer.get(ESCAPE_WHITESPACES, 1)
    if normalizer.get(CHARACTER_MAP, b"") or whitespace != (0, 1):
        return None
    codes = _codes(NEVER_JOINED.join(pieces))
    between = codes == ord(NEVER_JOINED)
    if np.count_nonzero(between) != len(pieces) - 1:
        return None
    groups = codes % GROUPS
    pairs = np.flatnonzero(~between[:-1] & ~between[1:])
    joined = np.zeros((GROUPS, GROUPS), np.bool_)
    joined[groups[pairs], groups[pairs + 1]] = True
    symbol, space = ord(SPACE_SYMBOL) % GROUPS, ord(" ")
    joined[space] |= joined[symbol]
    joined[:, space] |= joined[:, symbol]
    return SentencePieceSplitter(joined.ravel(), bool(normalizer.get(DUMMY_PREFIX, 1)))


def _merged(fields: list[tuple[int, int | bytes]], number: int) -> Message:
    """A message that may come in parts, of which the last counts for each field."""
    return {
        inner: content
        for outer, value in fields
        if outer == number and isinstance(value, bytes)
        for inner, content in _fields(value)
    }


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer: numbers, or the bytes of texts, messages and fixed-size values."""
    position = 0
    while position < len(message):
        key, position = _number(message, position)
        kind = key & 7
        if kind == 0:
            value, position = _number(message, position)
            yield key >> 3, value
            continue
        if kind == 2:
            size, position = _number(message, position)
        else:
            size = {1: 8, 5: 4}[kind]
        yield key >> 3, message[position : position + size]
        position += size


def _number(message: bytes, position: int) -> tuple[int, int]:
    """The variable-length number at `position`, and where it ends."""
    number = shift = 0
    while True:
        byte = message[position]
        number |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return number, position


def _codes(text: str) -> Codes:
    return np.frombuffer(text.encode("utf-32-le"), np.uint32)


NO_DUMMY_PREFIX = bytes([NORMALIZER << 3 | 2, 2, DUMMY_PREFIX << 3, 0])  # behind a model, it overrides this field


def build_piece_encoder(model: bytes) -> PieceEncoder | None:
    """What encodes texts as `model` does; None where that is not proved."""
    import sentencepiece

    engine = sentencepiece.SentencePieceProcessor(model_proto=model + NO_DUMMY_PREFIX)
    cuts = build_splitter(model, engine.id_to_piece(list(range(engine.get_piece_size()))))
    if cuts is None:
        return None
    return PieceEncoder(cuts, _model_encoder(engine), prefix=" " if cuts.dummy_prefix else "")


def _model_encoder(engine: SentencePieceProcessor) -> EncodePieces:
    first_byte = engine.piece_to_id(f"<0x{NEVER_JOINED.encode()[0]:02X}>")
    separator_ids = len(NEVER_JOINED.encode())

    def encode_pieces(pieces: list[str]) -> EncodedTexts:
        """All pieces in one call, which costs half, with what is never joined between them."""
        ids = np.array(engine.encode(NEVER_JOINED.join(pieces)), np.int32)
        ends = np.flatnonzero(ids == first_byte)
        if len(ends) != len(pieces) - 1:  # a piece holds this byte itself
            return EncodedTexts.from_lists([engine.encode(piece) for piece in pieces])
        is_piece = np.ones(len(ids), np.bool_)
        is_piece[(ends[:, np.newaxis] + np.arange(separator_ids)).ravel()] = False
        starts = np.append(0, ends + separator_ids)
        return EncodedTexts(ids[is_piece], np.append(ends, len(ids)) - starts)

    return encode_pieces
