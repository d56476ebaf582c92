"""One process' results, changed by hand as a mistake would change them. `test_verify` plants mistakes in ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from megatron_dsmath.checkpoint.weight_reader import tensor_shapes
from megatron_dsmath.config import load
from megatron_dsmath.verify_layouts.activation_sums import module_outputs
from megatron_dsmath.verify_layouts.compare import FP32, LayoutResult, differences
from megatron_dsmath.verify_layouts.diagnosis import KINDS, diagnose
from megatron_dsmath.verify_layouts.layouts import parse_layout
from megatron_dsmath.verify_layouts.shrink import shrink_run, with_layout

RUN = load("configs/pretrain/deepseekmath_base_7b.yaml")
SMALL = shrink_run(RUN, 4)
OUTPUTS = [f"{output}" for output in module_outputs(SMALL.model.layers)]


def one_process() -> LayoutResult:
    """Random tensors, and activation sums of 1 at every position."""
    generator = np.random.default_rng(3)
    tensors = {
        name: generator.normal(size=shape).astype(np.float32) for name, shape in tensor_shapes(SMALL.model).items()
    }
    copies = dict.fromkeys(tensors, 0.0)
    sums = np.ones((len(OUTPUTS), 2, SMALL.data.sequence_length))
    return LayoutResult([5.0, 4.9], [3.0, 2.9], sums, tensors, [dict(tensors), dict(tensors)], copies)


def change_outputs(result: LayoutResult, output: str, first: int, *, squares: bool) -> LayoutResult:
    """Change an output and all after it, from position `first` on."""
    sums = result.activation_sums.copy()
    sums[OUTPUTS.index(output) :, slice(0, 2 if squares else 1), first:] *= 1.5
    return replace(result, activation_sums=sums)


def change_gradients(result: LayoutResult, change: Callable[[str, np.ndarray], np.ndarray]) -> LayoutResult:
    return replace(result, gradients={name: change(name, tensor) for name, tensor in result.gradients.items()})


def diagnosed(name: str, ours: LayoutResult) -> tuple[str, str]:
    layout, theirs = parse_layout(name), one_process()
    run = with_layout(SMALL, layout, RUN)
    diagnosis = diagnose(run, layout, ours, theirs, differences(ours, theirs), FP32)
    assert diagnosis.kind in KINDS
    return diagnosis.kind, diagnosis.first_parameter


@pytest.mark.parametrize(
    ("layout", "output", "position", "squares", "kind", "parameter"),
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
def test_the_first_output_that_differs_gives_the_kind(
    layout: str, output: str, position: int, squares: bool, kind: str, parameter: str
) -> None:
    assert diagnosed(layout, change_outputs(one_process(), output, position, squares=squares)) == (kind, parameter)


def test_one_factor_on_every_gradient_is_a_scale() -> None:
    assert diagnosed("dp2", change_gradients(one_process(), lambda _, tensor: tensor * 2)) == (
        "scale",
        "model.embed_tokens.weight",
    )


def test_larger_weights_of_the_sequences_of_one_rank_are_averaging() -> None:
    weights = np.ones((SMALL.model.vocabulary_size, 1), np.float32)
    weights[[2, 3, 6, 7]] = 1.5  # the second of two data-parallel ranks, microbatches of 2

    def apply_weights(name: str, tensor: np.ndarray) -> np.ndarray:
        return tensor * weights if name == "model.embed_tokens.weight" else tensor * 1.2

    assert diagnosed("dp2", change_gradients(one_process(), apply_weights)) == (
        "averaging",
        "model.embed_tokens.weight",
    )


def test_a_matrix_whose_gradient_alone_differs_is_named() -> None:
    name = "model.layers.5.mlp.up_proj.weight"
    ours = change_gradients(one_process(), lambda tensor_name, tensor: tensor * (1.1 if tensor_name == name else 1))
    assert diagnosed("tp2", ours) == ("gradients", name)


def test_a_loss_that_differs_with_equal_gradients_is_a_loss() -> None:
    assert diagnosed("dp2", replace(one_process(), losses=[5.1, 4.9]))[0] == "loss"


def test_copies_that_differ_are_distinguished_from_a_wrong_step() -> None:
    result, name = one_process(), "model.layers.2.input_layernorm.weight"
    assert diagnosed("tp2sp", replace(result, copies={**result.copies, name: 0.1})) == ("copies", name)
    matrix = "model.layers.1.self_attn.k_proj.weight"
    stepped = {**result.updated[0], matrix: result.updated[0][matrix] * 1.01}
    assert diagnosed("dp2", replace(result, updated=[stepped, stepped])) == ("optimizer", matrix)
