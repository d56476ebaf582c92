"""The pieces of a Hugging Face tokenizer: its chain of pre-tokenizers, and its model asked for one piece."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from megatron_dsmath.data.tokenizing.piece_encoder import EncodedTexts, EncodePieces, PieceEncoder
from megatron_dsmath.data.tokenizing.pre_tokenizer import build_splitter

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

NO_NORMALIZER = {"type": "Sequence", "normalizers": []}


def added_literals(engine: Engine) -> tuple[str, ...]:
    """The added tokens of more than one character that the engine looks for in a text."""
    return tuple(content for content in _looked_for(engine) if len(content) != 1)


def build_piece_encoder(engine: Engine) -> PieceEncoder | None:
    """What encodes texts without `added_literals` as `engine` does; None where that is not proved."""
    from tokenizers import models

    if engine.normalizer is not None and json.loads(engine.normalizer.__getstate__()) != NO_NORMALIZER:
        return None
    if not isinstance(engine.model, models.BPE) or engine.model.dropout:
        return None
    added = engine.get_added_tokens_decoder().values()
    looked_for = _looked_for(engine)
    isolated = "".join(content for content in looked_for if len(content) == 1)
    if any(token.single_word or token.lstrip or token.rstrip for token in added if token.content in looked_for):
        return None
    # A special token that is passed over as plain text would shield the characters within it.
    if any(character in token.content for token in added if token.content not in looked_for for character in isolated):
        return None
    chain = build_splitter(engine.pre_tokenizer, isolated)
    return None if chain is None else PieceEncoder(chain, _model_encoder(engine, looked_for))


def _looked_for(engine: Engine) -> dict[str, int]:
    """The added tokens that the engine cuts out of a text, and their ids."""
    tokens = engine.get_added_tokens_decoder()
    return {
        token.content: identifier
        for identifier, token in tokens.items()
        if not (token.special and engine.encode_special_tokens)
    }


def _model_encoder(engine: Engine, added: dict[str, int]) -> EncodePieces:
    """The engine's model alone, four times as fast as the whole engine, which would cut the piece once more."""
    model = engine.model
    visible = _visible_bytes()

    def encode(piece: str) -> list[int]:
        if piece in added:
            return [added[piece]]
        return [token.id for token in model.tokenize(piece.encode().decode("latin-1").translate(visible))]

    return lambda pieces: EncodedTexts.from_lists([encode(piece) for piece in pieces])


def _visible_bytes() -> dict[int, int]:
    """The character that stands for each byte in a byte-level vocabulary (`bytes_to_unicode` of GPT-2's encoder.py)."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    replacements = iter(range(0x100, 0x200))
    return {byte: byte if byte in visible else next(replacements) for byte in range(0x100)}
