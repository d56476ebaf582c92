"""Layouts by name (`tp2sp`, `pp2vpp2`, `tp2pp2dp2noopt`), and the shapes that a number of processes can form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Literal

from megatron_dsmath.errors import UsageError

MICROBATCH_SEQUENCES = 2  # of a layout whose name has no mb

OptimizerKind = Literal["distributed", "noopt", "overlap"]


@dataclass(frozen=True)
class Layout:
    """One way to compute a step. Its name lists what differs from one plain process."""

    tensor: int = 1
    sequence: bool = False
    pipeline: int = 1
    virtual_stages: int = 1
    uneven: bool = False
    data: int = 1
    optimizer: OptimizerKind = "distributed"
    microbatch_sequences: int = MICROBATCH_SEQUENCES
    recompute: Literal["none", "selective", "full"] = "none"
    packed: bool = False  # attention stays within documents
    precision: Literal["fp32", "bf16"] = "fp32"

    @property
    def ranks(self) -> int:
        """The number of processes."""
        return self.tensor * self.pipeline * self.data

    @property
    def name(self) -> str:
        """The name that `parse_layout` reads; `one` for a single process with the defaults."""
        words = []
        for word, (field, value) in _WORDS.items():
            own = getattr(self, field)
            if own == value:
                words.append(word)
            elif value is None and own != getattr(Layout, field):  # not the default
                words.append(f"{word}{own}")
        return "".join(words) or "one"


# The words of a name, in order: a field, and its value or None if a number follows the word.
_WORDS: dict[str, tuple[str, object]] = {
    "tp": ("tensor", None),
    "sp": ("sequence", True),
    "pp": ("pipeline", None),
    "vpp": ("virtual_stages", None),
    "uneven": ("uneven", True),
    "dp": ("data", None),
    "noopt": ("optimizer", "noopt"),
    "overlap": ("optimizer", "overlap"),
    "mb": ("microbatch_sequences", None),
    "selective": ("recompute", "selective"),
    "full": ("recompute", "full"),
    "packed": ("packed", True),
    "bf16": ("precision", "bf16"),
}
_WORD = re.compile(rf"({'|'.join(_WORDS)})([1-9]\d*)?")


def parse_layout(name: str) -> Layout:
    """The layout with this name. Raises UsageError for an unknown word or a second word for the same field."""
    values: dict[str, object] = {}
    rest = "" if name == "one" else name
    while rest or not name:
        word = _WORD.match(rest)
        field, value = _WORDS[word[1]] if word else ("", None)
        if word is None or field in values or (value is None) != (word[2] is not None):
            raise UsageError(
                "this is not the name of a layout",
                where="--layouts",
                found=f"{name!r}, at {rest!r}",
                expected="one, or words joined without spaces, each setting given once: "
                "tp2 sp pp2 vpp2 uneven dp2 noopt overlap mb1 selective full packed bf16",
                fix="for example --layouts tp2sp,pp2vpp2,tp2pp2,dp2packed",
            )
        values[field] = value or int(word[2])
        rest = rest[word.end() :]
    return Layout(**values)  # type: ignore[arg-type]


def layout_shapes(ranks: int, tensor_sizes: tuple[int, ...]) -> Iterator[Layout]:
    """Every combination of parallelism and optimizer whose number of processes divides `ranks`, smallest first."""
    sizes = [size for size in range(1, ranks + 1) if ranks % size == 0]
    shapes = [shape for shape in product(sizes, repeat=3) if ranks % prod(shape) == 0 and shape[0] in tensor_sizes]
    for tensor, pipeline, data in sorted(shapes, key=lambda shape: (prod(shape), shape[::-1])):
        stages = [(1, False), (2, False), (1, True)] if pipeline > 1 else [(1, False)]
        optimizers: list[OptimizerKind] = ["distributed", "noopt", "overlap"] if data > 1 else ["distributed"]
        sequences = [False, True] if tensor > 1 else [False]
        for sequence, (virtual, uneven), optimizer in product(sequences, stages, optimizers):
            yield Layout(tensor, sequence, pipeline, virtual, uneven, data, optimizer)
