from __future__ import annotations

import sys

import numpy as np
import pytest

from megatron_dsmath.model.parameters import parameters
from megatron_dsmath.verify_layouts.compare import RankResult, Tensors, join_ranks, relative_difference
from tests.support.runs import run_config

MODEL = run_config(model__layers=1).model


def parts_of_rank(tensor_rank: int) -> Tensors:
    """The parts of one of two ranks; each complete tensor counts up from 0."""
    parts = Tensors()
    for parameter in parameters(MODEL):
        for name, shape in zip(parameter.hf_names, parameter.hf_shapes, strict=True):
            complete = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
            parts[name] = complete if parameter.split is None else np.split(complete, 2, parameter.split)[tensor_rank]
    return parts


def result(tensor_rank: int, parts: Tensors) -> RankResult:
    return RankResult(tensor_rank, [1.0], [1.0], np.ones((2, 2, 4)), parts, [parts])


def test_parts_of_tensor_parallel_ranks_are_joined_in_any_order_of_ranks() -> None:
    joined = join_ranks(MODEL, [result(1, parts_of_rank(1)), result(0, parts_of_rank(0)), result(1, parts_of_rank(1))])
    for name, tensor in joined.gradients.items():
        assert np.array_equal(tensor.ravel(), np.arange(tensor.size)), name
    assert set(joined.copies.values()) == {0.0}
    assert (joined.activation_sums == 3).all()  # added over ranks


def test_a_copy_that_differs_is_found() -> None:
    other = parts_of_rank(1)
    other["model.norm.weight"] = other["model.norm.weight"] * 1.5
    copies = join_ranks(MODEL, [result(0, parts_of_rank(0)), result(1, other)]).copies
    assert [name for name, difference in copies.items() if difference] == ["model.norm.weight"]
    assert copies["model.norm.weight"] == pytest.approx(0.5)


def test_a_tensor_that_no_rank_has_is_zero() -> None:
    without = {name: tensor for name, tensor in parts_of_rank(0).items() if name != "lm_head.weight"}
    joined = join_ranks(MODEL, [result(0, without), result(1, without)])
    assert not joined.gradients["lm_head.weight"].any()


def test_the_difference_is_a_ratio_of_norms_and_the_largest_float_for_nan() -> None:
    theirs = np.array([3.0, 4.0], np.float32)
    assert relative_difference(np.array([3.0, 4.5], np.float32), theirs) == pytest.approx(0.1)
    assert relative_difference(np.array([3.0, np.nan], np.float32), theirs) == sys.float_info.max
