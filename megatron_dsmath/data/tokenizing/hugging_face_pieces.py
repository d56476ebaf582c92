"""A PieceEncoder for Hugging Face tokenizers: the pre-tokenizers cut the text, the BPE model encodes the pieces."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from megatron_dsmath.data.tokenizing.piece_encoder import EncodedTexts, EncodePieces, PieceEncoder
from megatron_dsmath.data.tokenizing.pre_tokenizer import build_splitter

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Engine

NO_NORMALIZER = {"type": "Sequence", "normalizers": []}


def build_piece_encoder(engine: Engine) -> PieceEncoder | None:
    """An encoder that gives the ids of `engine` for texts without `added_literals`; None if that is not guaranteed."""
    from tokenizers import models

    if engine.normalizer is not None and json.loads(engine.normalizer.__getstate__()) != NO_NORMALIZER:
        return None
    if not isinstance(engine.model, models.BPE) or engine.model.dropout:
        return None
    added = engine.get_added_tokens_decoder().values()
    parsed = _parsed_tokens(engine)
    isolated = "".join(content for content in parsed if len(content) == 1)
    if any(token.single_word or token.lstrip or token.rstrip for token in added if token.content in parsed):
        return None
    # A special token that is treated as plain text would protect the characters in it from being isolated.
    if any(character in token.content for token in added if token.content not in parsed for character in isolated):
        return None
    splitter = build_splitter(engine.pre_tokenizer, isolated)
    return None if splitter is None else PieceEncoder(splitter, _model_encoder(engine, parsed))


def added_literals(engine: Engine) -> tuple[str, ...]:
    """The added tokens of more than one character that the engine searches for in a text."""
    return tuple(content for content in _parsed_tokens(engine) if len(content) != 1)


def _parsed_tokens(engine: Engine) -> dict[str, int]:
    """The added tokens that the engine searches for in a text, and their ids."""
    tokens = engine.get_added_tokens_decoder().items()
    is_plain = engine.encode_special_tokens  # special tokens are plain text
    return {token.content: identifier for identifier, token in tokens if not (token.special and is_plain)}


def _model_encoder(engine: Engine, added: dict[str, int]) -> EncodePieces:
    """Encode with the engine's model: four times as fast as the whole engine, which would split the piece again."""
    model = engine.model
    visible = _visible_bytes()

    def encode(piece: str) -> list[int]:
        if piece in added:
            return [added[piece]]
        return [token.id for token in model.tokenize(piece.encode().decode("latin-1").translate(visible))]

    return lambda pieces: EncodedTexts.from_lists([encode(piece) for piece in pieces])


def _visible_bytes() -> dict[int, int]:
    """The character of each byte in a byte-level vocabulary (`bytes_to_unicode` in GPT-2's encoder.py)."""
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    replacements = iter(range(0x100, 0x200))
    return {byte: byte if byte in visible else next(replacements) for byte in range(0x100)}
