"""How far a layout's results are from those of one process, and whether rounding explains the difference."""

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

ActivationSums = npt.NDArray[np.float64]  # [modules, 2, sequence]: weighted sums and sums of squares (activation_sums)
Tensors = dict[str, npt.NDArray[np.float32]]  # by Hugging Face name, in the order of the forward pass


class RankResult(NamedTuple):
    """What one rank of a layout computed."""

    tensor_rank: int
    losses: list[float]  # nats per target token, of each step
    norms: list[float]  # gradient norm of each step, before clipping
    activation_sums: ActivationSums  # this rank's part; the parts add up over ranks
    gradients: Tensors  # this rank's parts, of the first step, before clipping, summed over data-parallel ranks
    updated: list[Tensors]  # this rank's parts of the parameters, after each step


@dataclass(frozen=True)
class LayoutResult:
    """What all ranks of a layout computed: as `RankResult`, with complete tensors. A tensor on no rank is zero."""

    losses: list[float]
    norms: list[float]
    activation_sums: ActivationSums
    gradients: Tensors
    updated: list[Tensors]
    copies: dict[str, float]  # largest relative difference between two ranks' copies of a parameter or its gradient


@dataclass(frozen=True)
class Tolerance:
    """The largest relative differences from one process in fp32 that rounding explains."""

    loss: float
    gradient: float
    parameter: float


# Sums of the same fp32 numbers in another order: at most 3e-6 was measured, and at least 1e-3 for every planted fault.
FP32 = Tolerance(loss=1e-5, gradient=1e-5, parameter=1e-5)
# Each product and each activation is rounded by up to 2^-9, about ten times in each of 8 layers, and as often in the
# backward pass. One process in bf16 is as far from fp32 as any layout: up to 9e-2 in a gradient. A missing part of a
# sum makes a larger difference.
BF16 = Tolerance(loss=1e-2, gradient=0.2, parameter=5e-2)


@dataclass(frozen=True)
class Comparison:
    """One row of the table: the largest relative differences over steps and parameters; None if not compared."""

    layout: str
    ranks: int
    verdict: Literal["equal", "differs", "skipped"]
    loss: float | None = None
    gradient_norm: float | None = None
    gradient: float | None = None
    worst_gradient: str | None = None
    parameter: float | None = None
    worst_parameter: str | None = None
    kind: str | None = None  # the probable mistake, for a layout that differs: a key of `diagnosis.KINDS`
    first_parameter: str | None = None  # the first, in the order of the forward pass, where the results differ
    evidence: str | None = None


@dataclass(frozen=True)
class Differences:
    """Relative differences of everything that was measured."""

    losses: list[float]
    norms: list[float]
    gradients: dict[str, float]
    parameters: list[dict[str, float]]  # after each step; or the difference between copies, if that is larger

    def within(self, tolerance: Tolerance) -> bool:
        """Whether rounding explains all differences. It never explains NaN."""
        return (
            all(difference <= tolerance.loss for difference in self.losses)
            and all(difference <= tolerance.gradient for difference in (*self.norms, *self.gradients.values()))
            and all(difference <= tolerance.parameter for step in self.parameters for difference in step.values())
        )


def differences(ours: LayoutResult, theirs: LayoutResult) -> Differences:
    """The relative differences of a layout (`ours`) from one process (`theirs`)."""
    updated = [tensor_differences(*step) for step in zip(ours.updated, theirs.updated, strict=True)]
    return Differences(
        _number_differences(ours.losses, theirs.losses),
        _number_differences(ours.norms, theirs.norms),
        tensor_differences(ours.gradients, theirs.gradients),
        [{name: max(difference, ours.copies[name]) for name, difference in step.items()} for step in updated],
    )


def tensor_differences(ours: Tensors, theirs: Tensors) -> dict[str, float]:
    """The relative difference of each tensor, in the order of the forward pass."""
    return {name: relative_difference(tensor, theirs[name]) for name, tensor in ours.items()}


def relative_difference(ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> float:
    """||ours - theirs|| / ||theirs||; the largest float if it is NaN."""
    size = float(np.linalg.norm(theirs.astype(np.float64)))
    difference = float(np.linalg.norm(ours.astype(np.float64) - theirs))
    return float(np.nan_to_num(difference / size if size else difference, nan=sys.float_info.max))


def _number_differences(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    found = [abs(our / their - 1) for our, their in zip(ours, theirs, strict=True)]
    return [sys.float_info.max if isnan(difference) else difference for difference in found]


def largest(differences: Mapping[str, float]) -> tuple[str, float]:
    """The name with the largest difference, and the difference. The first name if several are equal."""
    return max(differences.items(), key=lambda item: item[1])


def join_ranks(model: ModelConfig, ranks: Sequence[RankResult]) -> LayoutResult:
    """Concatenate the ranks' parts of each tensor and add up their activation sums."""
    gradients, copies = _join_tensors(model, ranks, [rank.gradients for rank in ranks])
    updated = []
    for step in zip(*(rank.updated for rank in ranks), strict=True):
        tensors, step_copies = _join_tensors(model, ranks, step)
        updated.append(tensors)
        copies = {name: max(copies[name], step_copies[name]) for name in copies}
    sums = np.sum([rank.activation_sums for rank in ranks], axis=0)
    return LayoutResult(ranks[0].losses, ranks[0].norms, sums, gradients, updated, copies)


def _join_tensors(
    model: ModelConfig, ranks: Sequence[RankResult], parts_of_ranks: Sequence[Tensors]
) -> tuple[Tensors, dict[str, float]]:
    """The complete tensors, from the first copy of each part, and the largest difference between copies."""
    tensors: Tensors = {}
    copies: dict[str, float] = {}
    for parameter in parameters(model):
        for name, shape in zip(parameter.hf_names, parameter.hf_shapes, strict=True):
            # Ranks with the same tensor-parallel rank hold copies of a split tensor; all ranks of any other tensor.
            parts = [
                (rank.tensor_rank if parameter.split is not None else 0, own[name])
                for rank, own in zip(ranks, parts_of_ranks, strict=True)
                if name in own
            ]
            first_copies = dict(reversed(parts))
            copies[name] = max((relative_difference(part, first_copies[rank]) for rank, part in parts), default=0.0)
            in_order = [first_copies[rank] for rank in sorted(first_copies)]
            tensors[name] = np.concatenate(in_order, parameter.split or 0) if in_order else np.zeros(shape, np.float32)
    return tensors, copies
