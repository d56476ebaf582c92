from __future__ import annotations

import pytest

from megatron_dsmath.config import load
from megatron_dsmath.verify_layouts.layouts import Layout
from megatron_dsmath.verify_layouts.shrink import arranged, contradiction, shrunk, tensor_sizes, uneven_stages
from tests.support.runs import run_config

RUN = "configs/pretrain/deepseekmath_base_7b.yaml"


def test_the_shape_of_the_model_is_kept() -> None:
    run = load(RUN, ["model.key_value_heads=8"])
    small = shrunk(run, 4).model
    assert small.attention_heads // small.key_value_heads == 4
    assert small.ffn_hidden_size / small.hidden_size == pytest.approx(11008 / 4096, rel=0.05)
    assert (small.norm_epsilon, small.rope_theta) == (run.model.norm_epsilon, run.model.rope_theta)
    assert small.parameters < 1_000_000


@pytest.mark.parametrize("ranks", [1, 4, 8])
def test_sizes_are_unlike_each_other_and_no_round_numbers(ranks: int) -> None:
    small = shrunk(load(RUN), ranks)
    sizes = [small.model.hidden_size, small.model.ffn_hidden_size, small.model.vocabulary_size, small.model.layers]
    assert len(set(sizes)) == len(sizes)
    assert small.model.vocabulary_size % 64
    assert small.model.vocabulary_size > 2 * small.schedule.sequences_per_step  # each sequence has a token of its own


def test_tensor_sizes_are_those_that_divide_the_runs_own_model() -> None:
    assert tensor_sizes(load(RUN), 8) == (1, 2, 4, 8)
    run = run_config()  # 6 heads, 2 groups, width 88, 96 words
    assert tensor_sizes(run, 8) == (1, 2)


def test_the_largest_layouts_of_eight_processes_can_be_computed() -> None:
    run = load(RUN)
    small = shrunk(run, 8)
    for layout in (Layout(tensor=8, sequence=True), Layout(pipeline=8, virtual_stages=2), Layout(data=8)):
        assert contradiction(arranged(small, layout, run), layout) is None


def test_a_layout_that_does_not_divide_says_why() -> None:
    run = load(RUN)
    layout = Layout(pipeline=3)
    error = contradiction(arranged(shrunk(run, 4), layout, run), layout)
    assert error is not None
    assert "8 layers" in str(error.found)


@pytest.mark.parametrize(
    ("layers", "pieces", "own", "expected"),
    [
        (8, 4, (7, 8, 8, 7), (1, 3, 3, 1)),  # the paper's 30 layers over 4 stages
        (8, 2, (7, 8, 8, 7), (3, 5)),  # a split of another number of pieces says nothing of this one
        (8, 4, None, (1, 2, 2, 3)),
        (4, 2, (1, 3), (1, 3)),
    ],
)
def test_an_uneven_split_keeps_its_shape(
    layers: int, pieces: int, own: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    assert uneven_stages(layers, pieces, own) == expected
    assert sum(expected) == layers
