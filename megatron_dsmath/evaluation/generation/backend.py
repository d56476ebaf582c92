"""What every backend does, and what it is asked."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal, NamedTuple, Protocol


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
