"""How far a layout is from one process, and whether that is rounding."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.config.sections import ModelConfig
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
        for name, shape in zip(parameter.hf_names, parameter.hf_shapes, strict=True):
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


@dataclass(frozen=True)
class Tolerance:
    """The largest relative differences from one process in fp32 that are rounding."""

    loss: float
    gradient: float
    parameter: float


# Sums of the same fp32 numbers in another order: measured up to 3e-6, and 1e-3 and more for every planted fault.
FP32 = Tolerance(loss=1e-5, gradient=1e-5, parameter=1e-5)
# Each product and each activation is rounded by up to 2^-9, some ten times in each of 8 layers, and as often on the way
# back. One process is as far from fp32 as any layout is: up to 9e-2 in a gradient. A lost part of a sum is more.
BF16 = Tolerance(loss=1e-2, gradient=0.2, parameter=5e-2)


@dataclass(frozen=True)
class Comparison:
    """One line of the table: relative differences, the largest over steps and parameters; None was not compared."""

    layout: str
    ranks: int
    verdict: Literal["equal", "differs", "skipped"]
    loss: float | None = None
    gradient_norm: float | None = None
    gradient: float | None = None
    worst_gradient: str | None = None
    parameter: float | None = None
    worst_parameter: str | None = None
    kind: str | None = None
    """Of a layout that differs: which mistake this looks like."""
    first_parameter: str | None = None
    """The first, in the order of the forward pass, at which the layouts part."""
    evidence: str | None = None


@dataclass(frozen=True)
class Differences:
    """Relative differences of everything that was measured."""

    losses: list[float]
    norms: list[float]
    gradients: dict[str, float]
    parameters: list[dict[str, float]]
    """After each step; or between copies, where that is more."""

    def within(self, tolerance: Tolerance) -> bool:
        """Whether all of it is rounding. NaN is not."""
        return (
            all(difference <= tolerance.loss for difference in self.losses)
            and all(difference <= tolerance.gradient for difference in (*self.norms, *self.gradients.values()))
            and all(difference <= tolerance.parameter for step in self.parameters for difference in step.values())
        )


def differences(ours: Whole, theirs: Whole) -> Differences:
    """Of a layout from one process."""
    updated = [by_name(*step) for step in zip(ours.updated, theirs.updated, strict=True)]
    return Differences(
        _relative(ours.losses, theirs.losses),
        _relative(ours.norms, theirs.norms),
        by_name(ours.gradients, theirs.gradients),
        [{name: max(difference, ours.copies[name]) for name, difference in step.items()} for step in updated],
    )


def by_name(ours: Tensors, theirs: Tensors) -> dict[str, float]:
    """The relative difference of each tensor, in the order of the forward pass."""
    return {name: relative_difference(tensor, theirs[name]) for name, tensor in ours.items()}


def worst(found: Mapping[str, float]) -> tuple[str, float]:
    """The name of the largest, and it; of equal ones the first."""
    name = max(found, key=lambda name: found[name])
    return name, found[name]


def _relative(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    found = [abs(our / their - 1) for our, their in zip(ours, theirs, strict=True)]
    return [sys.float_info.max if isnan(difference) else difference for difference in found]
