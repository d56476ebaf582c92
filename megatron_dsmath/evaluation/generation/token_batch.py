"""One batch, token by token: what our own forward and transformers share, so that only the logits can differ."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch

from megatron_dsmath.data.sft.template import ANCHOR
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer


class Request(NamedTuple):
    """A prompt, and the seed of its own random numbers: who else is in the batch does not matter to it."""

    ids: Sequence[int]
    seed: int


class Decoding(NamedTuple):
    """How a batch is written on."""

    new_tokens: int
    """At most, for each prompt; fewer where the model's context ends first."""
    stop: tuple[str, ...]
    """Texts that end the writing."""
    temperature: float
    """0 is greedy."""
    top_p: float


class Completion(NamedTuple):
    """What the model wrote."""

    ids: list[int]
    """Without the end-of-text token; with every token of the stop text, the last of which may say more than it."""
    end: Literal["end of text", "stop", "length"]


class Backend(Protocol):
    """A model that writes on."""

    name: str

    def generate(self, requests: Sequence[Request], decoding: Decoding) -> list[Completion]:
        """One completion for each request, in their order."""

    def close(self) -> None:
        """Give the memory back."""


def seed_of(*parts: object) -> int:
    """A seed of 63 bits from whatever tells one draw from all others."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


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


class CachedForward(Protocol):
    """A model that remembers what it has read."""

    context_length: int
    device: torch.device

    def begin(self, ids: torch.Tensor, padding: torch.Tensor, new_tokens: int) -> torch.Tensor:
        """Read prompts.

        ids: [prompt, position], padded on the left. padding: [prompt], how many. new_tokens: `step` follows so often
        at most. Returns the next token's logits, [prompt, word].
        """

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Read one more token of each prompt, [prompt]; returns logits [prompt, word]."""


@torch.no_grad()  # not inference mode, whose tensors a cache (rotary) would hand on to training
def write_on(
    forward: CachedForward,
    continuation: Continuation,
    ends: frozenset[int],
    requests: Sequence[Request],
    decoding: Decoding,
) -> list[Completion]:
    """Write on behind each prompt until one of the tokens `ends`, a stop text, or the limit.

    A prompt that fills the model's context gets nothing.
    """
    room = [min(decoding.new_tokens, forward.context_length - len(request.ids)) for request in requests]
    open_rows = [row for row, tokens in enumerate(room) if tokens > 0]
    written: list[list[int]] = [[] for _ in requests]
    completions = [Completion(ids, "length") for ids in written]
    if not open_rows:
        return completions
    rows = list(open_rows)  # of the batch; those that have ended are read on with, and not listened to
    ids, padding = _padded([requests[row].ids for row in rows])
    generators = [torch.Generator().manual_seed(requests[row].seed) for row in rows]
    logits = forward.begin(ids.to(forward.device), padding.to(forward.device), max(room[row] for row in rows))
    while True:
        tokens = choose(logits, generators, decoding)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if row not in open_rows:
                continue
            if token in ends:
                completions[row] = Completion(written[row], "end of text")
                open_rows.remove(row)
                continue
            written[row].append(token)
            if continuation.stops(written[row], decoding.stop):
                completions[row] = Completion(written[row], "stop")
                open_rows.remove(row)
            elif len(written[row]) == room[row]:
                open_rows.remove(row)
        if not open_rows:
            return completions
        logits = forward.step(tokens.to(forward.device))


def choose(logits: torch.Tensor, generators: Sequence[torch.Generator], decoding: Decoding) -> torch.Tensor:
    """The next token of each prompt from logits [prompt, word]: int64 [prompt].

    Greedy at temperature 0. Else each prompt draws one number of its own, and takes the token at that place among those
    that are the most likely and reach top_p together, most likely first.
    """
    if decoding.temperature == 0:
        return logits.argmax(-1).cpu()
    places = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    probabilities = (logits.double() / decoding.temperature).softmax(-1).cpu()
    ordered, words = probabilities.sort(stable=True, dim=-1, descending=True)
    reached = ordered.cumsum(-1)
    ordered = ordered.masked_fill(reached - ordered >= decoding.top_p, 0.0)
    reached = ordered.cumsum(-1)
    place = torch.searchsorted(reached, places[:, None] * reached[:, -1:], right=True)
    last = (ordered > 0).sum(-1, keepdim=True) - 1  # rounding may lead beyond the last
    chosen: torch.Tensor = words.gather(-1, torch.minimum(place, last)).squeeze(-1)
    return chosen


def _padded(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts [prompt, position] with zeros on the left, and how many: [prompt]."""
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    return ids, torch.tensor([length - len(prompt) for prompt in prompts])
