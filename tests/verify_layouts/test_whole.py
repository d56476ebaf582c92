from __future__ import annotations

import sys

import numpy as np
import pytest

from megatron_dsmath.model.parameters import parameters
from megatron_dsmath.verify_layouts.compare import Measured, Parts, joined, relative_difference
from tests.support.runs import run_config

MODEL = run_config(model__layers=1).model


def held(tensor_rank: int) -> Parts:
    """What a rank of two holds of tensors that count up from 0."""
    parts = Parts()
    for parameter in parameters(MODEL):
        for name, shape in zip(parameter.hf_names, parameter.hf_shapes, strict=True):
            whole = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
            parts[name] = whole if parameter.split is None else np.split(whole, 2, parameter.split)[tensor_rank]
    return parts


def measured(tensor_rank: int, parts: Parts) -> Measured:
    return Measured(tensor_rank, [1.0], [1.0], np.ones((2, 2, 4)), parts, [parts])


def test_parts_of_tensor_parallel_ranks_make_the_whole_in_any_order_of_ranks() -> None:
    whole = joined(MODEL, [measured(1, held(1)), measured(0, held(0)), measured(1, held(1))])
    for name, tensor in whole.gradients.items():
        assert np.array_equal(tensor.ravel(), np.arange(tensor.size)), name
    assert set(whole.copies.values()) == {0.0}
    assert (whole.stations == 3).all()  # they add up over ranks


def test_a_copy_that_differs_is_found() -> None:
    other = held(1)
    other["model.norm.weight"] = other["model.norm.weight"] * 1.5
    copies = joined(MODEL, [measured(0, held(0)), measured(1, other)]).copies
    assert [name for name, difference in copies.items() if difference] == ["model.norm.weight"]
    assert copies["model.norm.weight"] == pytest.approx(0.5)


def test_a_tensor_that_no_rank_holds_is_as_far_as_zero() -> None:
    without = {name: tensor for name, tensor in held(0).items() if name != "lm_head.weight"}
    whole = joined(MODEL, [measured(0, without), measured(1, without)])
    assert not whole.gradients["lm_head.weight"].any()


def test_the_difference_is_a_ratio_of_norms_and_nan_is_as_far_as_can_be() -> None:
    theirs = np.array([3.0, 4.0], np.float32)
    assert relative_difference(np.array([3.0, 4.5], np.float32), theirs) == pytest.approx(0.1)
    assert relative_difference(np.array([3.0, np.nan], np.float32), theirs) == sys.float_info.max
