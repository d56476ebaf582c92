"""Kinds by hand: one process' figures, changed as a mistake would change them. What ranks do is in `test_verify`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from megatron_dsmath.checkpoint.weight_reader import tensor_shapes
from megatron_dsmath.config import load
from megatron_dsmath.verify_layouts.activation_sums import places
from megatron_dsmath.verify_layouts.compare import FP32, Whole, differences
from megatron_dsmath.verify_layouts.diagnosis import KINDS, diagnose
from megatron_dsmath.verify_layouts.layouts import Layout, parse
from megatron_dsmath.verify_layouts.shrink import arranged, shrunk

RUN = load("configs/pretrain/deepseekmath_base_7b.yaml")
SMALL = shrunk(RUN, 4)
STATIONS = [f"{place}" for place in places(SMALL.model.layers)]


def alone() -> Whole:
    """Figures as good as any; stations of 1 at every position."""
    draw = np.random.default_rng(3)
    tensors = {name: draw.normal(size=shape).astype(np.float32) for name, shape in tensor_shapes(SMALL.model).items()}
    copies = dict.fromkeys(tensors, 0.0)
    sums = np.ones((len(STATIONS), 2, SMALL.data.sequence_length))
    return Whole([5.0, 4.9], [3.0, 2.9], sums, tensors, [dict(tensors), dict(tensors)], copies)


def moved(whole: Whole, station: str, first: int, *, squares: bool) -> Whole:
    """A station and all after it give something else from a position on."""
    sums = whole.stations.copy()
    sums[STATIONS.index(station) :, slice(0, 2 if squares else 1), first:] *= 1.5
    return replace(whole, stations=sums)


def gradients(whole: Whole, change: Callable[[str, np.ndarray], np.ndarray]) -> Whole:
    return replace(whole, gradients={name: change(name, tensor) for name, tensor in whole.gradients.items()})


def found(layout: str, ours: Whole) -> tuple[str, str]:
    asked: Layout = parse(layout)
    theirs = alone()
    diagnosis = diagnose(arranged(SMALL, asked, RUN), asked, ours, theirs, differences(ours, theirs), FP32)
    assert diagnosis.kind in KINDS
    return diagnosis.kind, diagnosis.first_parameter


@pytest.mark.parametrize(
    ("layout", "station", "position", "squares", "kind", "parameter"),
    [
        ("tp2", "embedding", 0, True, "vocabulary", "model.embed_tokens.weight"),
        ("tp2", "query, key and value of layer 3", 0, False, "qkv-order", "model.layers.3.self_attn.q_proj.weight"),
        ("pp2", "query, key and value of layer 4", 0, True, "layers", "model.layers.4.self_attn.q_proj.weight"),
        ("tp2", "attention of layer 0", 0, True, "heads", "model.layers.0.self_attn.q_proj.weight"),
        ("tp2", "attention of layer 0", 1, True, "positions", "model.layers.0.self_attn.q_proj.weight"),
        ("pp2packed", "attention of layer 4", 5, True, "documents", "model.layers.4.self_attn.q_proj.weight"),
        ("pp2", "attention of layer 4", 5, True, "positions", "model.layers.4.self_attn.q_proj.weight"),
        ("tp2", "feed-forward of layer 7", 0, True, "sum", "model.layers.7.mlp.gate_proj.weight"),
        ("pp2", "final norm", 0, True, "logits", "model.norm.weight"),
    ],
)
def test_the_first_station_that_differs_tells(
    layout: str, station: str, position: int, squares: bool, kind: str, parameter: str
) -> None:
    assert found(layout, moved(alone(), station, position, squares=squares)) == (kind, parameter)


def test_one_factor_on_every_gradient_is_a_matter_of_scale() -> None:
    assert found("dp2", gradients(alone(), lambda _, tensor: tensor * 2)) == ("scale", "model.embed_tokens.weight")


def test_sequences_of_one_rank_that_weigh_more_are_averaged() -> None:
    weights = np.ones((SMALL.model.vocabulary_size, 1), np.float32)
    weights[[2, 3, 6, 7]] = 1.5  # the second of two data-parallel ranks, microbatches of 2

    def weighed(name: str, tensor: np.ndarray) -> np.ndarray:
        return tensor * weights if name == "model.embed_tokens.weight" else tensor * 1.2

    assert found("dp2", gradients(alone(), weighed)) == ("averaging", "model.embed_tokens.weight")


def test_a_matrix_whose_gradient_alone_differs_is_named() -> None:
    name = "model.layers.5.mlp.up_proj.weight"
    ours = gradients(alone(), lambda tensor_name, tensor: tensor * (1.1 if tensor_name == name else 1))
    assert found("tp2", ours) == ("gradients", name)


def test_a_loss_of_equal_gradients_is_a_matter_of_the_report() -> None:
    assert found("dp2", replace(alone(), losses=[5.1, 4.9]))[0] == "loss"


def test_copies_that_drift_are_told_from_a_wrong_step() -> None:
    whole, name = alone(), "model.layers.2.input_layernorm.weight"
    assert found("tp2sp", replace(whole, copies={**whole.copies, name: 0.1})) == ("copies", name)
    matrix = "model.layers.1.self_attn.k_proj.weight"
    stepped = {**whole.updated[0], matrix: whole.updated[0][matrix] * 1.01}
    assert found("dp2", replace(whole, updated=[stepped, stepped])) == ("optimizer", matrix)
