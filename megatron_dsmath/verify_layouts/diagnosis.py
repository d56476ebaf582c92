"""The probable mistake behind a difference: where in the step it first appears, and in which pattern."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.verify_layouts.activation_sums import ModuleOutput, module_outputs
from megatron_dsmath.verify_layouts.compare import Differences, LayoutResult, Tolerance
from megatron_dsmath.verify_layouts.layouts import Layout
from megatron_dsmath.verify_layouts.measure import FIRST_DOCUMENT, microbatch_rows

KINDS = {
    "vocabulary": "the embedding returns the rows of other tokens",
    "layers": "a stage uses the weights of another layer or the output of another stage",
    "qkv-order": "the fused query, key and value matrix has its rows in another order than attention expects",
    "positions": "attention uses other rotary positions or another mask",
    "documents": "attention crosses the start of a document",
    "heads": "attention reads other heads",
    "sum": "the partial sums of tensor-parallel ranks are not added",
    "logits": "the output layer computes other logits",
    "loss": "the loss differs although the logits are equal",
    "norm-gradients": "gradients of norms are not added over the sequence-parallel ranks",
    "backward": "the backward pass does not add the tensor-parallel ranks' gradients of their common input",
    "reduction": "the gradients of some data-parallel ranks are missing",
    "averaging": "a mean of means: the weight of a sequence depends on the targets of the sequences beside it",
    "scale": "all gradients differ by one factor",
    "gradients": "gradients differ in no known pattern",
    "gradient-norm": "the gradient norm counts some gradients more or less than once",
    "decay": "weight decay is applied to norms",
    "optimizer": "the optimizer makes another step from equal gradients",
    "copies": "ranks have different copies of one parameter",
    "failed": "the layout does not run",
    "one-process": "one process does not compute what transformers computes",
}

# Relative differences of activation sums: at least 1e-2 for a planted fault, at most 5e-6 from rounding in fp32.
_ACTIVATION_TOLERANCE = {"fp32": 1e-4, "bf16": 0.3}
_WEIGHT_TOLERANCE = 1e-3  # of a sequence's weight in the gradient


class Diagnosis(NamedTuple):
    """The probable mistake, as in the last fields of `Comparison`."""

    kind: str
    first_parameter: str
    evidence: str


def diagnose(
    run: RunConfig, layout: Layout, ours: LayoutResult, theirs: LayoutResult, found: Differences, tolerance: Tolerance
) -> Diagnosis:
    """Find the first difference in the first step: in the forward pass, gradients, loss, norm, or parameters.

    `run` is the one that was computed, with its layout.
    """
    moved = np.abs(ours.activation_sums[:, 0] - theirs.activation_sums[:, 0]) / np.sqrt(theirs.activation_sums[:, 1])
    is_off = ~(moved <= _ACTIVATION_TOLERANCE[layout.precision])  # [modules, sequence]; NaN is off
    if is_off.any():
        return _diagnose_forward_pass(run, layout, ours, theirs, is_off)
    off = {name: difference for name, difference in found.gradients.items() if not difference <= tolerance.gradient}
    if off:
        return _diagnose_gradients(run, layout, ours, theirs, off)
    updated = [name for name, difference in found.parameters[0].items() if not difference <= tolerance.parameter]
    first = next(iter(updated), next(iter(ours.gradients)))
    loss, norm = found.losses[0], found.norms[0]
    if not loss <= tolerance.loss:
        return Diagnosis("loss", "lm_head.weight", f"the loss differs by {loss:.1e}; all gradients are equal")
    if not norm <= tolerance.gradient:
        return Diagnosis("gradient-norm", first, f"the gradient norm differs by {norm:.1e}; all gradients are equal")
    copies = [name for name, difference in ours.copies.items() if not difference <= tolerance.parameter]
    if copies:
        return Diagnosis("copies", copies[0], f"{len(copies)} parameters have copies that differ")
    if all(_is_norm(name) for name in updated):
        return Diagnosis("decay", first, f"only norms differ ({len(updated)}); all gradients are equal")
    return Diagnosis("optimizer", first, f"{len(updated)} parameters differ; all gradients are equal")


def _diagnose_forward_pass(
    run: RunConfig, layout: Layout, ours: LayoutResult, theirs: LayoutResult, is_off: npt.NDArray[np.bool_]
) -> Diagnosis:
    index = int(np.argmax(is_off.any(axis=1)))
    position = int(np.argmax(is_off[index]))
    our_squares, squares = ours.activation_sums[index, 1], theirs.activation_sums[index, 1]
    tolerance = _ACTIVATION_TOLERANCE[layout.precision]
    has_equal_squares = bool((np.abs(our_squares - squares) <= tolerance * squares).all())
    output = module_outputs(run.model.layers)[index]
    kind = _forward_kind(output, layout, position, has_equal_squares)
    before = "all outputs before it are equal" if index else "it is the first output"
    return Diagnosis(kind, output.parameter, f"the output of {output} differs from position {position} on; {before}")


def _forward_kind(output: ModuleOutput, layout: Layout, position: int, has_equal_squares: bool) -> str:
    """The kind of mistake in a module whose input is equal and whose output differs from `position` on."""
    if output.module == "embedding":
        return "vocabulary"
    if output.module == "query, key and value" and has_equal_squares:
        return "qkv-order"  # the same numbers in other channels
    if output.module == "attention":
        # The first token attends only to itself, so neither its position nor a mask can change its output.
        if position == 0:
            return "heads"
        return "documents" if layout.packed and position >= FIRST_DOCUMENT else "positions"
    if output.module in ("attention's output projection", "feed-forward") and layout.tensor > 1:
        return "sum"
    return "logits" if output.layer is None else "layers"


def _diagnose_gradients(
    run: RunConfig, layout: Layout, ours: LayoutResult, theirs: LayoutResult, off: dict[str, float]
) -> Diagnosis:
    first = next(iter(off))
    if all(_is_norm(name) for name in off) and layout.sequence:
        return Diagnosis("norm-gradients", first, f"only gradients of norms differ ({len(off)})")
    counted = f"{len(off)} of {len(ours.gradients)} gradients differ; the forward pass is equal"
    weights = _sequence_weights(ours, theirs, run.schedule.sequences_per_step)
    if weights is None:
        kind = "backward" if layout.tensor > 1 else "gradients"
        return Diagnosis(kind, first, f"{counted}; the gradients of single sequences differ")
    missing = [sequence for sequence, weight in weights.items() if abs(weight) < _WEIGHT_TOLERANCE]
    if missing:
        listed = ", ".join(map(str, missing[:6])) + (", ..." if len(missing) > 6 else "")
        return Diagnosis("reduction", first, f"{counted}; the gradients of sequences {listed} are missing")
    smallest, highest = min(weights.values()), max(weights.values())
    if highest - smallest > _WEIGHT_TOLERANCE:
        group = _unequal_groups(run, layout, weights)
        evidence = f"{counted}; {group} have {smallest:.3g} to {highest:.3g} times their weight"
        return Diagnosis("averaging", first, evidence)
    factor = float(np.mean(list(weights.values())))
    if abs(factor - 1) > _WEIGHT_TOLERANCE:
        return Diagnosis("scale", first, f"{counted}; each sequence has {factor:.4g} times its weight")
    return Diagnosis("gradients", first, f"{counted}; each sequence has its weight")


def _sequence_weights(ours: LayoutResult, theirs: LayoutResult, sequences: int) -> dict[int, float] | None:
    """The weight of each sequence in our gradient relative to theirs; None if the gradients differ by more than that.

    Row i of the embedding's gradient comes from sequence i alone (`global_batch`). The first sequence has no targets.
    """
    our_rows, their_rows = (result.gradients["model.embed_tokens.weight"] for result in (ours, theirs))
    weights = {}
    for sequence in range(1, sequences):
        our, their = our_rows[sequence].astype(np.float64), their_rows[sequence].astype(np.float64)
        weight = float(our @ their / (their @ their))
        if not np.linalg.norm(our - weight * their) <= _WEIGHT_TOLERANCE * np.linalg.norm(their):
            return None
        weights[sequence] = weight
    return weights


def _unequal_groups(run: RunConfig, layout: Layout, weights: dict[int, float]) -> str:
    """Whether weights differ within a data-parallel rank, between microbatches, or only between ranks."""
    for rank in range(layout.data):
        slices = microbatch_rows(run, rank, layout.data)
        of_rank = [weights[row] for rows in slices for row in range(rows.start, rows.stop) if row in weights]
        if of_rank and max(of_rank) - min(of_rank) > _WEIGHT_TOLERANCE:
            return "microbatches"
    return "data-parallel ranks"


def _is_norm(name: str) -> bool:
    return name.endswith("norm.weight")
