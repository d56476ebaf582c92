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
    packed: bool = False
    """Attention stays within documents."""
    precision: Literal["fp32", "bf16"] = "fp32"

    @property
    def ranks(self) -> int:
        """The number of processes."""
        return self.tensor * self.pipeline * self.data

    @property
    def name(self) -> str:
        """The name that `parse_layout` reads; `one` for a single process with the defaults."""
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


def parse_layout(name: str) -> Layout:
    """The layout with this name. Raises UsageError for an unknown word or a second word for the same field."""
    values: dict[str, object] = {}
    rest = "" if name == "one" else name
    while rest or not name:
        word = _WORD.match(rest)
        field, value = _field_and_value(word) if word else ("", None)
        if word is None or field in values:
            raise UsageError(
                "this is not the name of a layout",
                where="--layouts",
                found=f"{name!r}, at {rest!r}",
                expected="one, or words joined without spaces, each setting given once: "
                "tp2 sp pp2 vpp2 uneven dp2 noopt overlap mb1 selective full packed bf16",
                fix="for example --layouts tp2sp,pp2vpp2,tp2pp2,dp2packed",
            )
        values[field] = value
        rest = rest[word.end() :]
    return Layout(**values)  # type: ignore[arg-type]


def _field_and_value(word: re.Match[str]) -> tuple[str, object]:
    return (_SIZES[word["key"]], int(word["size"])) if word["key"] else _FLAGS[word["flag"]]


def layout_shapes(ranks: int, tensor_sizes: tuple[int, ...]) -> Iterator[Layout]:
    """Every combination of parallelism and optimizer whose number of processes divides `ranks`, smallest first."""
    sizes = [size for size in range(1, ranks + 1) if ranks % size == 0]
    combinations = [combination for combination in product(sizes, repeat=3) if ranks % prod(combination) == 0]
    for tensor, pipeline, data in sorted(combinations, key=lambda sizes: (prod(sizes), sizes[::-1])):
        if tensor not in tensor_sizes:
            continue
        stages = [(1, False), (2, False), (1, True)] if pipeline > 1 else [(1, False)]
        optimizers: list[OptimizerKind] = ["distributed", "noopt", "overlap"] if data > 1 else ["distributed"]
        for sequence, (virtual, uneven), optimizer in product(
            [False, True] if tensor > 1 else [False], stages, optimizers
        ):
            yield Layout(tensor, sequence, pipeline, virtual, uneven, data, optimizer)
