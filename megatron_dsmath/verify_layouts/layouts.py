"""Layouts by name: `tp2sp`, `pp2vpp2`, `tp2pp2dp2noopt`, and which of them a number of processes can form."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Literal

from megatron_dsmath.errors import UsageError

_SIZES = {"tp": "tensor", "pp": "pipeline", "vpp": "virtual_stages", "dp": "data", "mb": "microbatch_sequences"}
_FLAGS: dict[str, tuple[str, object]] = {
    "sp": ("sequence", True),
    "uneven": ("uneven", True),
    "noopt": ("optimizer", "noopt"),
    "overlap": ("optimizer", "overlap"),
    "selective": ("recompute", "selective"),
    "full": ("recompute", "full"),
    "packed": ("packed", True),
    "bf16": ("precision", "bf16"),
}
_WORD = re.compile(rf"(?P<key>{'|'.join(_SIZES)})(?P<size>[1-9]\d*)|(?P<flag>{'|'.join(_FLAGS)})")
MICROBATCH_SEQUENCES = 2  # of a layout whose name does not say


@dataclass(frozen=True)
class Layout:
    """One way to compute the same step. What differs from one plain process stands in the name."""

    tensor: int = 1
    sequence: bool = False
    pipeline: int = 1
    virtual_stages: int = 1
    uneven: bool = False
    data: int = 1
    optimizer: Literal["distributed", "noopt", "overlap"] = "distributed"
    microbatch_sequences: int = MICROBATCH_SEQUENCES
    recompute: Literal["none", "selective", "full"] = "none"
    packed: bool = False
    """Attention stays within documents."""
    precision: Literal["fp32", "bf16"] = "fp32"

    @property
    def ranks(self) -> int:
        """Processes it takes."""
        return self.tensor * self.pipeline * self.data

    @property
    def name(self) -> str:
        """As `parse` reads it; `one` is a single process with nothing special."""
        words = (
            f"tp{self.tensor}" if self.tensor > 1 else "",
            "sp" if self.sequence else "",
            f"pp{self.pipeline}" if self.pipeline > 1 else "",
            f"vpp{self.virtual_stages}" if self.virtual_stages > 1 else "",
            "uneven" if self.uneven else "",
            f"dp{self.data}" if self.data > 1 else "",
            self.optimizer if self.optimizer != "distributed" else "",
            f"mb{self.microbatch_sequences}" if self.microbatch_sequences != MICROBATCH_SEQUENCES else "",
            self.recompute if self.recompute != "none" else "",
            "packed" if self.packed else "",
            "bf16" if self.precision == "bf16" else "",
        )
        return "".join(words) or "one"


def parse(name: str) -> Layout:
    """The layout of a name. Raises UsageError for a word that is none, or a second one for the same thing."""
    values: dict[str, object] = {}
    rest = "" if name == "one" else name
    while rest or not name:
        word = _WORD.match(rest)
        field, value = _meaning(word) if word else ("", None)
        if word is None or field in values:
            raise UsageError(
                "no layout has this name",
                where="--layouts",
                found=f"{name!r}, from {rest!r} on",
                expected="one, or words written together, each thing said once: tp2 sp pp2 vpp2 uneven dp2 noopt "
                "overlap mb1 selective full packed bf16",
                fix="for example --layouts tp2sp,pp2vpp2,tp2pp2,dp2packed",
            )
        values[field] = value
        rest = rest[word.end() :]
    return Layout(**values)  # type: ignore[arg-type]


def _meaning(word: re.Match[str]) -> tuple[str, object]:
    return (_SIZES[word["key"]], int(word["size"])) if word["key"] else _FLAGS[word["flag"]]


def shapes(ranks: int, tensor_sizes: tuple[int, ...]) -> Iterator[Layout]:
    """Every way in which worlds whose size divides `ranks` can share the model and the batch, small worlds first."""
    sizes = [size for size in range(1, ranks + 1) if ranks % size == 0]
    worlds = [world for world in product(sizes, repeat=3) if ranks % (world[0] * world[1] * world[2]) == 0]
    for tensor, pipeline, data in sorted(worlds, key=lambda world: (world[0] * world[1] * world[2], world[::-1])):
        if tensor not in tensor_sizes:
            continue
        stages = [(1, False), (2, False), (1, True)] if pipeline > 1 else [(1, False)]
        optimizers: list[Literal["distributed", "noopt", "overlap"]] = ["distributed", "noopt", "overlap"]
        for sequence, (virtual, uneven), optimizer in product(
            [False, True] if tensor > 1 else [False], stages, optimizers if data > 1 else optimizers[:1]
        ):
            yield Layout(tensor, sequence, pipeline, virtual, uneven, data, optimizer)
