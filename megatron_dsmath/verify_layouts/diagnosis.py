"""Which mistake a difference looks like: where in the step it first shows, and in which pattern."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.verify_layouts.activation_sums import Place, places
from megatron_dsmath.verify_layouts.compare import Differences, Tolerance, Whole
from megatron_dsmath.verify_layouts.layouts import Layout
from megatron_dsmath.verify_layouts.measure import FIRST_DOCUMENT, sequences_of

KINDS = {
    "vocabulary": "the embedding gives other rows than those of its tokens",
    "layers": "a stage computes with another layer's weights, or on another stage's output",
    "qkv-order": "rows of the fused query, key and value matrix are in another order than attention reads them",
    "positions": "attention has other rotary positions, or another mask",
    "documents": "attention does not stop where a document begins",
    "heads": "attention reads other heads",
    "sum": "the parts of a sum over tensor-parallel ranks are not added",
    "logits": "the output layer computes other logits",
    "loss": "the loss is another number, of the same logits",
    "norm-gradients": "gradients of norms are not added over the ranks that share the sequence",
    "backward": "the backward pass does not add what tensor-parallel ranks say of their common input",
    "reduction": "gradients of some data-parallel ranks do not arrive",
    "averaging": "means of means: sequences weigh by the number of targets of those they are computed with",
    "scale": "all gradients are off by one factor",
    "gradients": "gradients differ, and no pattern says why",
    "gradient-norm": "the gradient norm counts a part of the gradients more or less than once",
    "decay": "weight decay reaches norms",
    "optimizer": "the optimizer makes another step of the same gradients",
    "copies": "ranks hold different copies of one parameter",
    "failed": "the layout does not run",
    "one-process": "one process computes something else than an independent implementation",
}

# Of what passes a station; a planted fault moves it by 1e-2 and more, rounding by 5e-6 (fp32).
_STATION_TOLERANCE = {"fp32": 1e-4, "bf16": 0.3}
_WEIGHT_TOLERANCE = 1e-3  # of a sequence in the gradient


class Diagnosis(NamedTuple):
    """`kind` is one of KINDS; `first_parameter` is where the layouts part, and `evidence` what shows it."""

    kind: str
    first_parameter: str
    evidence: str


def diagnose(
    run: RunConfig, layout: Layout, ours: Whole, theirs: Whole, found: Differences, tolerance: Tolerance
) -> Diagnosis:
    """Follow the first step: forward pass, gradients, loss, norm, update. The first that differs tells.

    `run` is the one that was computed, in its layout.
    """
    station = _first_station(ours, theirs, _STATION_TOLERANCE[layout.precision])
    if station is not None:
        return _of_the_forward_pass(run, layout, ours, theirs, station)
    off = {name: difference for name, difference in found.gradients.items() if not difference <= tolerance.gradient}
    if off:
        return _of_the_gradients(run, layout, ours, theirs, off)
    updated = [name for name, difference in found.parameters[0].items() if not difference <= tolerance.parameter]
    first = next(iter(updated), next(iter(ours.gradients)))
    if not found.losses[0] <= tolerance.loss:
        return Diagnosis("loss", "lm_head.weight", f"the loss is off by {found.losses[0]:.1e}, every gradient is equal")
    if not found.norms[0] <= tolerance.gradient:
        return Diagnosis("gradient-norm", first, f"the norm is off by {found.norms[0]:.1e}, every gradient is equal")
    drifting = [name for name, difference in ours.copies.items() if not difference <= tolerance.parameter]
    if drifting:
        return Diagnosis("copies", drifting[0], f"{len(drifting)} parameters have copies that differ")
    if all(_is_norm(name) for name in updated):
        return Diagnosis("decay", first, f"{len(updated)} norms differ after equal gradients, and no matrix")
    return Diagnosis("optimizer", first, f"{len(updated)} parameters differ after equal gradients")


def _first_station(ours: Whole, theirs: Whole, tolerance: float) -> int | None:
    off = (~(_moved(ours, theirs) <= tolerance)).any(axis=1)
    return int(np.argmax(off)) if off.any() else None


def _moved(ours: Whole, theirs: Whole) -> npt.NDArray[np.float64]:
    """How far each station is off at each position: [stations, sequence]."""
    moved: npt.NDArray[np.float64] = np.abs(ours.stations[:, 0] - theirs.stations[:, 0])
    return moved / np.sqrt(theirs.stations[:, 1])


def _of_the_forward_pass(run: RunConfig, layout: Layout, ours: Whole, theirs: Whole, station: int) -> Diagnosis:
    place = places(run.model.layers)[station]
    tolerance = _STATION_TOLERANCE[layout.precision]
    position = int(np.argmax(~(_moved(ours, theirs)[station] <= tolerance)))
    kind = _kind_of(place, layout, position, _has_other_squares(ours, theirs, station, tolerance))
    before = "all before it is equal" if station else "it is the first"
    return Diagnosis(kind, place.parameter, f"{place} differs from position {position} on; {before}")


def _has_other_squares(ours: Whole, theirs: Whole, station: int, tolerance: float) -> bool:
    squares = theirs.stations[station, 1]
    return not bool((np.abs(ours.stations[station, 1] - squares) <= tolerance * squares).all())


def _kind_of(place: Place, layout: Layout, position: int, other_squares: bool) -> str:
    """At a station whose input is equal and whose output is not."""
    if place.station == "embedding":
        return "vocabulary"
    if place.station == "query, key and value" and not other_squares:
        return "qkv-order"  # the same numbers elsewhere
    if place.station == "attention":
        # A first token sees itself alone: neither its position nor a mask can change what it gets.
        if position == 0:
            return "heads"
        return "documents" if layout.packed and position >= FIRST_DOCUMENT else "positions"
    if place.station in ("attention's output projection", "feed-forward") and layout.tensor > 1:
        return "sum"
    return "logits" if place.layer is None else "layers"


def _of_the_gradients(run: RunConfig, layout: Layout, ours: Whole, theirs: Whole, off: dict[str, float]) -> Diagnosis:
    first = next(iter(off))
    if all(_is_norm(name) for name in off) and layout.sequence:
        return Diagnosis("norm-gradients", first, f"{len(off)} gradients differ, of norms alone")
    counted = f"{len(off)} of {len(ours.gradients)} gradients differ, the forward pass is equal"
    weights = _weights_of_sequences(ours, theirs, run.schedule.sequences_per_step)
    if weights is None:
        kind = "backward" if layout.tensor > 1 else "gradients"
        return Diagnosis(kind, first, f"{counted}; of single sequences too")
    lost = [number for number, weight in weights.items() if abs(weight) < _WEIGHT_TOLERANCE]
    if lost:
        return Diagnosis("reduction", first, f"{counted}; sequences {_listed(lost)} have no part in them")
    spread = max(weights.values()) - min(weights.values())
    if spread > _WEIGHT_TOLERANCE:
        group = _weighed_together(run, layout, weights)
        span = f"{min(weights.values()):.3g} to {max(weights.values()):.3g}"
        return Diagnosis("averaging", first, f"{counted}; {group} weigh {span} times what they should")
    factor = float(np.mean(list(weights.values())))
    if abs(factor - 1) > _WEIGHT_TOLERANCE:
        return Diagnosis("scale", first, f"{counted}; each sequence weighs {factor:.4g} times what it should")
    return Diagnosis("gradients", first, f"{counted}; each sequence has its weight")


def _weights_of_sequences(ours: Whole, theirs: Whole, sequences: int) -> dict[int, float] | None:
    """With which weight each sequence counts in our gradient; None where it is not the same gradient at any weight.

    Row i of the embedding's gradient comes from sequence i alone (`batch`); the first has no targets.
    """
    rows = [whole.gradients["model.embed_tokens.weight"] for whole in (ours, theirs)]
    weights = {}
    for number in range(1, sequences):
        our, their = (row[number].astype(np.float64) for row in rows)
        weight = float(our @ their / (their @ their))
        if not np.linalg.norm(our - weight * their) <= _WEIGHT_TOLERANCE * np.linalg.norm(their):
            return None
        weights[number] = weight
    return weights


def _weighed_together(run: RunConfig, layout: Layout, weights: dict[int, float]) -> str:
    ranks = [sequences_of(run, rank, layout.data) for rank in range(layout.data)]
    for rows in ranks:
        of_rank = [weights[row] for part in rows for row in range(part.start, part.stop) if row in weights]
        if of_rank and max(of_rank) - min(of_rank) > _WEIGHT_TOLERANCE:
            return "microbatches"
    return "data-parallel ranks"


def _is_norm(name: str) -> bool:
    return name.endswith("norm.weight")


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers[:6])) + (", ..." if len(numbers) > 6 else "")
