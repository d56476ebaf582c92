"""Parses the learning rate of a run file, a sentence such as `warm up over 2000 steps, cosine to 10%`.

    curve  = part, part, ...
    part   = SHAPE [from RATE] [to RATE] [over LENGTH | until LENGTH]
    RATE   = 31.6% of the peak, or a learning rate such as 4.2e-5
    LENGTH = 80% of the phase, 2000 steps, or 100B tokens (K, M, B and T are 10^3, 10^6, 10^9 and 10^12)

`over` counts from the part before, `until` from the start of the phase. A part without either ends with the phase.
`schedule.learning_rate` computes the rates.
"""

from __future__ import annotations

import re
from fractions import Fraction
from functools import cache
from math import ceil, floor
from typing import Literal, NamedTuple, get_args

Shape = Literal["warm up", "constant", "drop", "linear", "cosine", "1-sqrt", "inverse-sqrt", "exponential"]
SHAPES: tuple[Shape, ...] = get_args(Shape)
DECAYS = ("linear", "cosine", "1-sqrt", "exponential")  # from the rate before to another, over a number of steps

_SCALES = {"": 1, "K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
_NUMBER = r"[0-9]+(?:\.[0-9]+)?(?:e[-+]?[0-9]{1,2})?"
_RATE = re.compile(rf"({_NUMBER})(%?)")
_LENGTH = re.compile(rf"({_NUMBER})(?:(%)|([KMBT]?) (steps|tokens))")
_PART = re.compile(
    rf"(?P<shape>{'|'.join(map(re.escape, SHAPES))})"
    r"(?: from (?P<first>\S+))?(?: to (?P<last>\S+))?(?: (?P<relation>over|until) (?P<length>\S+(?: steps| tokens)?))?"
)


class Length(NamedTuple):
    """A number of steps or of tokens, or a share of a phase."""

    number: Fraction
    unit: Literal["share", "steps", "tokens"]

    def steps(self, phase_steps: int, tokens_per_step: int) -> int:
        """The whole steps within this length, rounded down: 80% of 47,684 steps are 38,147."""
        scale = {"share": Fraction(phase_steps), "steps": Fraction(1), "tokens": Fraction(1, tokens_per_step)}
        return floor(self.number * scale[self.unit])

    def steps_of_phase(self, tokens_per_step: int) -> int:
        """The steps of a phase of this length, rounded up to whole steps: all of its tokens are read."""
        return ceil(self.number / (tokens_per_step if self.unit == "tokens" else 1))


class Rate(NamedTuple):
    """A learning rate, or a share of the peak."""

    number: Fraction
    is_share: bool

    def value(self, peak: float) -> float:
        """The learning rate for this peak."""
        return peak * float(self.number) if self.is_share else float(self.number)


class Part(NamedTuple):
    """A part of a curve as it is written."""

    text: str
    shape: Shape
    first: Rate | None
    last: Rate | None
    relation: Literal["over", "until"] | None
    length: Length | None


@cache  # a step asks for its phase several times
def parse_curve(text: str) -> tuple[Part, ...]:
    """Return the parts of a curve. Raises ValueError, with what is wrong in which part."""
    parts = tuple(_parse_part(part.strip()) for part in text.split(","))
    if parts[0].shape == "inverse-sqrt":
        raise ValueError("a part before `inverse-sqrt`, such as a warm-up: its steps are the time scale of the decay")
    return parts


@cache
def parse_length(text: str) -> Length:
    """Return a length. Raises ValueError for other text and for zero."""
    match = _LENGTH.fullmatch(text)
    if match is None:
        raise ValueError(f"a length such as 80%, 2000 steps or 100B tokens, not {text!r}")
    number, percent, scale, unit = match.groups()
    length = Length(Fraction(number) / 100, "share")
    if not percent:
        length = Length(Fraction(number) * _SCALES[scale], "tokens" if unit == "tokens" else "steps")
    if not length.number:
        raise ValueError(f"a length above zero, not {text!r}")
    if percent and length.number > 1:
        raise ValueError(f"at most 100%, not {text!r}")
    return length


def valid_curve(text: str) -> str:
    """Return the text of a valid curve. Raises ValueError for another."""
    parse_curve(text)
    return text


def valid_length(text: str) -> str:
    """Return the text of a phase's length. Raises ValueError for another."""
    if parse_length(text).unit == "share":
        raise ValueError(f"steps or tokens, such as 2000 steps or 100B tokens, not {text!r}")
    return text


def _parse_part(text: str) -> Part:
    match = _PART.fullmatch(text)
    if match is None:
        raise ValueError(
            f"parts such as `linear to 10% until 80%`, separated by commas; {text!r} is none. "
            f"The shapes are {', '.join(SHAPES)}"
        )
    shape: Shape = match["shape"]  # type: ignore[assignment]
    first = _parse_rate(match["first"]) if match["first"] else None
    last = _parse_rate(match["last"]) if match["last"] else None
    if first and shape != "warm up":
        raise ValueError(f"`from` only after `warm up`, not in {text!r}: other parts begin with the rate before them")
    if shape in (*DECAYS, "drop") and last is None:
        raise ValueError(f"the rate at the end, such as `{shape} to 10%`, in {text!r}")
    if shape == "constant" and last is not None:
        raise ValueError(f"no `to` in {text!r}: `drop to {match['last']}` changes the rate at once")
    if shape == "exponential" and last is not None and not last.number:
        raise ValueError(f"a rate above zero in {text!r}: an exponential decay does not reach zero")
    length = parse_length(match["length"]) if match["length"] else None
    return Part(text, shape, first, last, match["relation"], length)  # type: ignore[arg-type]


def _parse_rate(text: str) -> Rate:
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError(f"a rate such as 10% (of the peak) or 4.2e-5, not {text!r}")
    number, percent = match.groups()
    return Rate(Fraction(number) / 100, is_share=True) if percent else Rate(Fraction(number), is_share=False)
