"""One batch, token by token: what our own forward and transformers share, so that only the logits can differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from megatron_dsmath.evaluation.generation.backend import Completion, Decoding, Request
from megatron_dsmath.evaluation.generation.continuation import Continuation


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
