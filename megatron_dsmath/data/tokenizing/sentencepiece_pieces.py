"""A PieceEncoder for SentencePiece models: the vocabulary shows where to cut a text, the model encodes the pieces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.tokenizing.piece_encoder import Codes, EncodedTexts, EncodePieces, PieceEncoder, code_points

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

GROUPS = 1 << 11  # characters are grouped by their lowest 11 bits: a cut can be missed, but never be wrong
WINDOW_CHARACTERS = 1 << 12
SEPARATOR = "\U0010ffff"  # a noncharacter of the Unicode Standard, which a model encodes as the ids of its four bytes
SPACE_SYMBOL = "▁"  # replaces a space in the vocabulary

# Numbers of fields and values in sentencepiece_model.proto.
TRAINER, NORMALIZER = 2, 3
MODEL_TYPE, BPE, WHITESPACE_AS_SUFFIX, BYTE_FALLBACK = 3, 2, 24, 35
CHARACTER_MAP, DUMMY_PREFIX, REMOVE_EXTRA_WHITESPACES, ESCAPE_WHITESPACES = 2, 3, 4, 5
NO_DUMMY_PREFIX = bytes([NORMALIZER << 3 | 2, 2, DUMMY_PREFIX << 3, 0])  # appended to a model, it overrides this field


def build_piece_encoder(model: bytes) -> PieceEncoder | None:
    """An encoder that gives the ids of `model`, the content of a `.model` file; None if that is not guaranteed."""
    import sentencepiece

    engine = sentencepiece.SentencePieceProcessor(model_proto=model + NO_DUMMY_PREFIX)
    splitter = build_splitter(model, engine.id_to_piece(list(range(engine.get_piece_size()))))
    if splitter is None:
        return None
    return PieceEncoder(splitter, _model_encoder(engine), prefix=" " if splitter.dummy_prefix else "")


class SentencePieceSplitter(NamedTuple):
    """The `Splitter` (see piece_encoder) of one model.

    `joined`: [GROUPS * GROUPS], whether an entry of the vocabulary contains two characters next to each other.
    `dummy_prefix`: whether the model adds a space before a text.
    """

    joined: npt.NDArray[np.bool_]
    dummy_prefix: bool

    def mark_cuts(self, codes: Codes, cuts: npt.NDArray[np.bool_]) -> None:
        """Mark in `cuts` [characters + 1] where pieces begin."""
        groups = (codes % GROUPS).astype(np.int64)
        cuts[1:-1] |= ~self.joined.take(groups[:-1] * GROUPS + groups[1:])

    def next_cut(self, text: str, start: int) -> int:
        """The next cut: every cut depends only on the two characters around it."""
        for begin in range(max(start - 1, 0), len(text), WINDOW_CHARACTERS):
            codes = code_points(text[begin : begin + WINDOW_CHARACTERS + 1])
            cuts = np.zeros(len(codes) + 1, np.bool_)
            self.mark_cuts(codes, cuts)
            if cuts.any():
                return begin + int(np.argmax(cuts))
        return len(text)


def build_splitter(model: bytes, vocabulary: Sequence[str]) -> SentencePieceSplitter | None:
    """The splitter of a `.model` that the library has loaded; None if the model is not of the supported form.

    Supported are BPE models with byte fallback (without it, adjacent unknown characters become one id) whose
    normalizer only replaces each space by its symbol, in any context, and whose vocabulary does not use `SEPARATOR`.
    """
    messages = [(number, value) for number, value in _fields(model) if number in (TRAINER, NORMALIZER)]
    trainer, normalizer = (_merged(messages, number) for number in (TRAINER, NORMALIZER))
    if (trainer.get(MODEL_TYPE), trainer.get(BYTE_FALLBACK), trainer.get(WHITESPACE_AS_SUFFIX, 0)) != (BPE, 1, 0):
        return None
    whitespace = normalizer.get(REMOVE_EXTRA_WHITESPACES, 1), normalizer.get(ESCAPE_WHITESPACES, 1)
    if normalizer.get(CHARACTER_MAP, b"") or whitespace != (0, 1):
        return None
    codes = code_points(SEPARATOR.join(vocabulary))
    between = codes == ord(SEPARATOR)
    if np.count_nonzero(between) != len(vocabulary) - 1:
        return None
    groups = codes % GROUPS
    pairs = np.flatnonzero(~between[:-1] & ~between[1:])
    joined = np.zeros((GROUPS, GROUPS), np.bool_)
    joined[groups[pairs], groups[pairs + 1]] = True
    symbol, space = ord(SPACE_SYMBOL) % GROUPS, ord(" ")
    joined[space] |= joined[symbol]
    joined[:, space] |= joined[:, symbol]
    return SentencePieceSplitter(joined.ravel(), bool(normalizer.get(DUMMY_PREFIX, 1)))


def _model_encoder(engine: SentencePieceProcessor) -> EncodePieces:
    first_byte = engine.piece_to_id(f"<0x{SEPARATOR.encode()[0]:02X}>")
    separator_ids = len(SEPARATOR.encode())

    def encode_pieces(pieces: list[str]) -> EncodedTexts:
        """Encode all pieces in one call, which is twice as fast, with the separator between them."""
        ids = np.array(engine.encode(SEPARATOR.join(pieces)), np.int32)
        ends = np.flatnonzero(ids == first_byte)
        if len(ends) != len(pieces) - 1:  # a piece contains this byte itself
            return EncodedTexts.from_lists([engine.encode(piece) for piece in pieces])
        is_piece = np.ones(len(ids), np.bool_)
        is_piece[(ends[:, np.newaxis] + np.arange(separator_ids)).ravel()] = False
        starts = np.append(0, ends + separator_ids)
        return EncodedTexts(ids[is_piece], np.append(ends, len(ids)) - starts)

    return encode_pieces


def _merged(fields: list[tuple[int, int | bytes]], number: int) -> dict[int, int | bytes]:
    """A message that may be split into parts; the last value of each field counts."""
    return {
        inner: content
        for outer, value in fields
        if outer == number and isinstance(value, bytes)
        for inner, content in _fields(value)
    }


def _fields(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """The fields of a protocol buffer: integers, or the bytes of strings, messages and fixed-size values."""
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        kind = key & 7
        if kind == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        if kind == 2:
            size, position = _varint(message, position)
        else:
            size = {1: 8, 5: 4}[kind]
        yield key >> 3, message[position : position + size]
        position += size


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """The variable-length integer at `position`, and the position after it."""
    number = shift = 0
    while True:
        byte = message[position]
        number |= (byte & 0x7F) << shift
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return number, position
