"""Generate a batch token by token, in one loop for our own decoder and transformers: only their logits can differ."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol

import torch

from megatron_dsmath.data.sft.template import ANCHOR
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer


class Request(NamedTuple):
    """A prompt, and the seed of its random numbers, which do not depend on the other prompts of the batch."""

    ids: Sequence[int]
    seed: int


class GenerationSettings(NamedTuple):
    """The settings of a batch."""

    new_tokens: int
    """The most tokens per prompt; fewer if the model's context ends first."""
    stop: tuple[str, ...]
    """Texts that end the generation."""
    temperature: float
    """0 is greedy."""
    top_p: float


class Completion(NamedTuple):
    """The tokens that the model generated for a prompt."""

    ids: list[int]
    """Without the end-of-text token; with all tokens of the stop text, the last of which may hold more characters."""
    end: Literal["end of text", "stop", "length"]


class Backend(Protocol):
    """A model that generates completions."""

    name: str

    def generate(self, requests: Sequence[Request], settings: GenerationSettings) -> list[Completion]:
        """One completion per request, in order."""

    def close(self) -> None:
        """Free the memory."""


class CachedForward(Protocol):
    """A forward pass with a cache of keys and values."""

    context_length: int
    device: torch.device

    def begin(self, ids: torch.Tensor, padding: torch.Tensor, new_tokens: int) -> torch.Tensor:
        """Read prompts.

        ids: [prompt, position], padded on the left. padding: [prompt], the number of padding tokens. new_tokens: the
        most calls of `step` that follow. Returns the logits of the next token, [prompt, word].
        """

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Read one more token of each prompt, [prompt]; returns logits [prompt, word]."""


@torch.no_grad()  # not inference mode: its tensors would stay in a cache (rotary) that training uses as well
def generate_batch(
    forward: CachedForward,
    decoder: ContinuationDecoder,
    ends: frozenset[int],
    requests: Sequence[Request],
    settings: GenerationSettings,
) -> list[Completion]:
    """Generate after each prompt until one of the tokens `ends`, a stop text, or the limit.

    The completion of a prompt that fills the model's context is empty.
    """
    limits = [min(settings.new_tokens, forward.context_length - len(request.ids)) for request in requests]
    active = [row for row, limit in enumerate(limits) if limit > 0]
    generated: list[list[int]] = [[] for _ in requests]
    completions = [Completion(ids, "length") for ids in generated]
    if not active:
        return completions
    rows = list(active)  # of the batch; finished prompts stay in it, and their tokens are ignored
    ids, padding = _pad_left([requests[row].ids for row in rows])
    generators = [torch.Generator().manual_seed(requests[row].seed) for row in rows]
    logits = forward.begin(ids.to(forward.device), padding.to(forward.device), max(limits[row] for row in rows))
    while True:
        tokens = choose_tokens(logits, generators, settings)
        for row, token in zip(rows, tokens.tolist(), strict=True):
            if row not in active:
                continue
            if token in ends:
                completions[row] = Completion(generated[row], "end of text")
                active.remove(row)
                continue
            generated[row].append(token)
            if decoder.ends_with_stop(generated[row], settings.stop):
                completions[row] = Completion(generated[row], "stop")
                active.remove(row)
            elif len(generated[row]) == limits[row]:
                active.remove(row)
        if not active:
            return completions
        logits = forward.step(tokens.to(forward.device))


def choose_tokens(
    logits: torch.Tensor, generators: Sequence[torch.Generator], settings: GenerationSettings
) -> torch.Tensor:
    """The next token of each prompt from logits [prompt, word]: int64 [prompt].

    Greedy at temperature 0. Otherwise each prompt draws one uniform number from its own generator, and takes the token
    at that quantile of the most likely tokens that together reach top_p, most likely first.
    """
    if settings.temperature == 0:
        return logits.argmax(-1).cpu()
    draws = torch.stack([torch.rand((), generator=generator, dtype=torch.float64) for generator in generators])
    probabilities = (logits.double() / settings.temperature).softmax(-1).cpu()
    ordered, words = probabilities.sort(stable=True, dim=-1, descending=True)
    cumulative = ordered.cumsum(-1)
    ordered = ordered.masked_fill(cumulative - ordered >= settings.top_p, 0.0)
    cumulative = ordered.cumsum(-1)
    index = torch.searchsorted(cumulative, draws[:, None] * cumulative[:, -1:], right=True)
    last = (ordered > 0).sum(-1, keepdim=True) - 1  # rounding can give an index beyond the last token
    chosen: torch.Tensor = words.gather(-1, torch.minimum(index, last)).squeeze(-1)
    return chosen


class ContinuationDecoder:
    """Decodes ids that follow a prompt. Without a prompt, SentencePiece would remove a first space."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._anchor = tokenizer.encode(ANCHOR)
        self._anchor_text = tokenizer.decode(self._anchor)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""
        return self._tokenizer.decode([*self._anchor, *ids]).removeprefix(self._anchor_text)

    def ends_with_stop(self, ids: Sequence[int], stop: Sequence[str]) -> bool:
        """Whether the last of `ids` completes one of the texts `stop`."""
        if not stop:
            return False
        # A token is at least one byte, except for tokens without text: the caller searches the whole text once more.
        tail = ids[-max(len(text.encode()) for text in stop) :]
        return find_stop(self.decode(tail), stop) is not None

    def split(self, ids: Sequence[int], text: str) -> tuple[list[int], str]:
        """The longest beginning of `ids` whose text is a beginning of `text`, and the rest of `text`."""
        kept = list(ids)
        while kept and not text.startswith(self.decode(kept)):
            kept.pop()
        return kept, text[len(self.decode(kept)) if kept else 0 :]


def find_stop(text: str, stop: Sequence[str]) -> tuple[int, str] | None:
    """The position of the first of the texts `stop`, and that text."""
    found = [(text.find(word), word) for word in stop if word in text]
    return min(found, key=lambda item: item[0], default=None)


def derive_seed(*parts: object) -> int:
    """A seed of 63 bits from the values that identify a draw."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 1


def _pad_left(prompts: Sequence[Sequence[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts [prompt, position] with zeros on the left, and the number of zeros [prompt]."""
    length = max(map(len, prompts))
    ids = torch.tensor([[0] * (length - len(prompt)) + list(prompt) for prompt in prompts])
    return ids, torch.tensor([length - len(prompt) for prompt in prompts])
