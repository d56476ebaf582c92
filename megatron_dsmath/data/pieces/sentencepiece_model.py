"""The pieces of a SentencePiece model: where a text may be cut, and the model asked for many pieces at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from megatron_dsmath.data.pieces.cache import EncodePieces
from megatron_dsmath.data.pieces.encoded_texts import EncodedTexts
from megatron_dsmath.data.pieces.encoder import PieceEncoder
from megatron_dsmath.data.pieces.sentencepiece_cuts import DUMMY_PREFIX, NEVER_JOINED, NORMALIZER, recognise

if TYPE_CHECKING:
    from sentencepiece import SentencePieceProcessor

NO_DUMMY_PREFIX = bytes([NORMALIZER << 3 | 2, 2, DUMMY_PREFIX << 3, 0])  # behind a model, it overrides this field


def piece_encoder(model: bytes) -> PieceEncoder | None:
    """What encodes texts as `model` does; None where that is not proved."""
    import sentencepiece

    engine = sentencepiece.SentencePieceProcessor(model_proto=model + NO_DUMMY_PREFIX)
    cuts = recognise(model, engine.id_to_piece(list(range(engine.get_piece_size()))))
    if cuts is None:
        return None
    return PieceEncoder(cuts, _by_model(engine), prefix=" " if cuts.dummy_prefix else "")


def _by_model(engine: SentencePieceProcessor) -> EncodePieces:
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
