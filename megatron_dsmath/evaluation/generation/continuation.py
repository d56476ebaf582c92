"""Tokens that go on from others, as text: the seams of training (docs/decisions/0022), read backwards."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_dsmath.data.conversations.encoding import ANCHOR
from megatron_dsmath.data.tokenizer import Tokenizer


class Continuation:
    """The text of ids that follow a prompt: SentencePiece would take off a first space if nothing came before."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode(ANCHOR)
        self._anchor_text = tokenizer.decode(self._anchor)

    def text(self, ids: Sequence[int]) -> str:
        """What `ids` say."""
        return self._tokenizer.decode([*self._anchor, *ids]).removeprefix(self._anchor_text)

    def stops(self, ids: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the last of `ids` completes one of the texts `stop`."""
        if not stop:
            return False
        # A token is a byte at least, but for those without text: the whole is searched once more at the end.
        tail = ids[-max(len(text.encode()) for text in stop) :]
        return first_stop(self.text(tail), stop) is not None

    def longest_within(self, ids: Sequence[int], text: str) -> tuple[list[int], str]:
        """As many of the first `ids` as say nothing beyond `text`, and the rest of `text`, which they do not say."""
        kept = list(ids)
        while kept and not text.startswith(self.text(kept)):
            kept.pop()
        return kept, text[len(self.text(kept)) if kept else 0 :]


def first_stop(text: str, stop: Sequence[str]) -> tuple[int, str] | None:
    """Where the earliest of the texts `stop` begins, and which it is."""
    found = [(text.find(word), word) for word in stop if word in text]
    return min(found, key=lambda place: place[0], default=None)
