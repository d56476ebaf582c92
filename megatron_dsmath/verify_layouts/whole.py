"""What a layout computed, put together out of what its ranks hold."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.config.model import ModelConfig
from megatron_dsmath.model.parameters import parameters

Sums = npt.NDArray[np.float64]  # [stations, 2, sequence], as `stations` says: weighted sums, and sums of squares
Parts = dict[str, npt.NDArray[np.float32]]  # what a rank holds of each tensor, by Hugging Face's names
Tensors = dict[str, npt.NDArray[np.float32]]  # whole, by the same names, in the order of the forward pass


class Measured(NamedTuple):
    """One rank's part of what a layout computed."""

    tensor_rank: int
    losses: list[float]
    """Nats per target token, of each step."""
    norms: list[float]
    """Of all gradients before clipping, in each step."""
    stations: Sums
    """This rank's part of the sums over all ranks."""
    gradients: Parts
    """Of the first step, before clipping, whole over data-parallel ranks."""
    updated: list[Parts]
    """The parameters after each step."""


@dataclass(frozen=True)
class Whole:
    """A layout's figures, as `Measured`; a tensor that no rank holds is zero.

    `copies`: the largest relative difference between two ranks' copies of each parameter, or of its gradient.
    """

    losses: list[float]
    norms: list[float]
    stations: Sums
    gradients: Tensors
    updated: list[Tensors]
    copies: dict[str, float]


def joined(model: ModelConfig, ranks: Sequence[Measured]) -> Whole:
    """The whole tensors out of every rank's parts; of copies the first counts."""
    gradients, copies = _tensors(model, ranks, [rank.gradients for rank in ranks])
    updated = []
    for held in zip(*(rank.updated for rank in ranks), strict=True):
        tensors, differing = _tensors(model, ranks, held)
        updated.append(tensors)
        copies = {name: max(copies[name], differing[name]) for name in copies}
    stations = np.sum([rank.stations for rank in ranks], axis=0)
    return Whole(ranks[0].losses, ranks[0].norms, stations, gradients, updated, copies)


def relative_difference(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> float:
    """The norm of the difference over the norm of theirs; the largest number there is for NaN."""
    size = float(np.linalg.norm(theirs.astype(np.float64)))
    difference = float(np.linalg.norm(ours.astype(np.float64) - theirs))
    return float(np.nan_to_num(difference / size if size else difference, nan=sys.float_info.max))


def _tensors(model: ModelConfig, ranks: Sequence[Measured], held: Sequence[Parts]) -> tuple[Tensors, dict[str, float]]:
    tensors: Tensors = {}
    copies: dict[str, float] = {}
    for parameter in parameters(model):
        for name, shape in zip(parameter.theirs, parameter.shapes, strict=True):
            # What is split has copies only on ranks of the same tensor-parallel rank, what is not on all.
            parts = [
                (rank.tensor_rank if parameter.split is not None else 0, own[name])
                for rank, own in zip(ranks, held, strict=True)
                if name in own
            ]
            firsts = dict(reversed(parts))
            copies[name] = max((relative_difference(part, firsts[share]) for share, part in parts), default=0.0)
            shares = [firsts[share] for share in sorted(firsts)]
            tensors[name] = np.concatenate(shares, parameter.split or 0) if shares else np.zeros(shape, np.float32)
    return tensors, copies
