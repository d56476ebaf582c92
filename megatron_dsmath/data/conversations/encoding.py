"""Pieces to tokens and their mask, many conversations at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.conversations.conversation import Message
from megatron_dsmath.data.conversations.template import Piece, Template, prompt_pieces
from megatron_dsmath.data.pieces.encoded_texts import EncodedTexts
from megatron_dsmath.data.tokenizer import Tokenizer
from megatron_dsmath.errors import TokenizerError

ANCHOR = ":"  # what a text continues when it is encoded for itself


class EncodedExamples(NamedTuple):
    """Examples end to end: `tokens` int32 and `is_target` bool [sum of lengths], `lengths` int64 [examples]."""

    tokens: npt.NDArray[np.int32]
    is_target: npt.NDArray[np.bool_]
    lengths: npt.NDArray[np.int64]

    def target_counts(self) -> npt.NDArray[np.int64]:
        """How many tokens of each example are learned: int64 [examples]."""
        learned = np.append(0, np.cumsum(self.is_target))
        counts: npt.NDArray[np.int64] = np.diff(learned[np.append(0, np.cumsum(self.lengths))])
        return counts


class ConversationEncoder:
    """A template and a tokenizer: conversations to tokens, and to prompts."""

    def __init__(self, template: Template, tokenizer: Tokenizer) -> None:
        self._template, self._tokenizer = template, tokenizer
        letter = tokenizer.encode("a")
        # SentencePiece and its like write a space before every text, which would split a word at each seam.
        self._marks_beginnings = tokenizer.decode(letter + letter) != "aa"

    def encode(self, conversations: Sequence[Sequence[Message]]) -> EncodedExamples:
        """Conversations that end with the assistant. Raises as the template does."""
        return self.encode_pieces([self._template.pieces(messages) for messages in conversations])

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """What a model is given to answer a conversation that ends with the user."""
        tokens: list[int] = self.encode_pieces([prompt_pieces(self._template, messages)]).tokens.tolist()
        return tokens

    def continuation(self, text: str) -> list[int]:
        """What a tool says, or anything else that goes on where the model stopped."""
        tokens: list[int] = self._encode_texts([text], np.array([True])).tokens.tolist()
        return tokens

    def encode_pieces(self, examples: Sequence[Sequence[Piece]]) -> EncodedExamples:
        """What the template made of conversations."""
        pieces = [piece for example in examples for piece in example]
        example_pieces = np.fromiter(map(len, examples), np.int64, len(examples))
        specials = np.array([-1 if piece.special is None else piece.special for piece in pieces], np.int32)
        is_text = specials < 0
        texts = [piece.text for piece in pieces if piece.special is None]
        encoded = self._encode_texts(texts, _continues(np.repeat(np.arange(len(examples)), example_pieces)[is_text]))
        lengths = np.ones(len(pieces), np.int64)
        lengths[is_text] = encoded.lengths
        holds_text = np.repeat(is_text, lengths)
        tokens = np.empty(len(holds_text), np.int32)
        tokens[holds_text], tokens[~holds_text] = encoded.tokens, specials[~is_text]
        is_target = np.repeat(np.array([piece.is_target for piece in pieces], np.bool_), lengths)
        ends = np.append(0, np.cumsum(lengths))[np.cumsum(example_pieces)]
        return EncodedExamples(tokens, is_target, np.diff(ends, prepend=0))

    def _encode_texts(self, texts: Sequence[str], continues: npt.NDArray[np.bool_]) -> EncodedTexts:
        if not self._marks_beginnings:
            return self._tokenizer.encode_arrays(texts)
        anchor = self._tokenizer.encode(ANCHOR)
        ids = self._tokenizer.encode_batch(
            [ANCHOR + text if on else text for text, on in zip(texts, continues, strict=True)]
        )
        for number in np.flatnonzero(continues).tolist():
            if ids[number][: len(anchor)] != anchor:
                raise TokenizerError(
                    "the tokenizer does not encode a text that goes on",
                    where=self._tokenizer.path,
                    found=f"{ANCHOR + texts[number]!r:.80} does not begin with the tokens of {ANCHOR!r}",
                    expected="a tokenizer that splits before letters, blanks and backticks",
                    fix="use a byte-level tokenizer",
                )
            ids[number] = ids[number][len(anchor) :]
        return EncodedTexts.from_lists(ids)


def _continues(example_of_text: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Which texts have one before them in their example, with or without special tokens in between."""
    has_one: npt.NDArray[np.bool_] = np.diff(example_of_text, prepend=-1) == 0
    return has_one
