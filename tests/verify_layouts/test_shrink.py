from __future__ import annotations

import pytest

from megatron_dsmath.config import load
from megatron_dsmath.verify_layouts.layouts import Layout
from megatron_dsmath.verify_layouts.shrink import layout_error, shrink_run, tensor_sizes, uneven_stages, with_layout
from tests.support.runs import run_config

RUN = "configs/pretrain/deepseekmath_base_7b.yaml"


def test_the_ratios_of_the_model_are_kept() -> None:
    run = load(RUN, ["model.key_value_heads=8"])
    small = shrink_run(run, 4).model
    assert small.attention_heads // small.key_value_heads == 4
    assert small.ffn_hidden_size / small.hidden_size == pytest.approx(11008 / 4096, rel=0.05)
    assert (small.norm_epsilon, small.rope_theta) == (run.model.norm_epsilon, run.model.rope_theta)
    assert small.parameters < 1_000_000


@pytest.mark.parametrize("ranks", [1, 4, 8])
def test_all_sizes_differ_and_the_vocabulary_is_not_a_multiple_of_64(ranks: int) -> None:
    small = shrink_run(load(RUN), ranks)
    sizes = [small.model.hidden_size, small.model.ffn_hidden_size, small.model.vocabulary_size, small.model.layers]
    assert len(set(sizes)) == len(sizes)
    assert small.model.vocabulary_size % 64
    assert small.model.vocabulary_size > 2 * small.schedule.sequences_per_step  # each sequence has its own token


def test_tensor_sizes_are_those_that_divide_the_runs_own_model() -> None:
    assert tensor_sizes(load(RUN), 8) == (1, 2, 4, 8)
    run = run_config()  # 6 heads, 2 groups, width 88, 96 words
    assert tensor_sizes(run, 8) == (1, 2)


def test_the_largest_layouts_of_eight_processes_can_be_computed() -> None:
    run = load(RUN)
    small = shrink_run(run, 8)
    for layout in (Layout(tensor=8, sequence=True), Layout(pipeline=8, virtual_stages=2), Layout(data=8)):
        assert layout_error(with_layout(small, layout, run), layout) is None


def test_a_layout_that_does_not_divide_the_model_has_an_error() -> None:
    run = load(RUN)
    layout = Layout(pipeline=3)
    error = layout_error(with_layout(shrink_run(run, 4), layout, run), layout)
    assert error is not None
    assert "8 layers" in str(error.found)


@pytest.mark.parametrize(
    ("layers", "chunks", "own", "expected"),
    [
        (8, 4, (7, 8, 8, 7), (1, 3, 3, 1)),  # the paper's 30 layers over 4 stages
        (8, 2, (7, 8, 8, 7), (3, 5)),  # a split into another number of chunks is ignored
        (8, 4, None, (1, 2, 2, 3)),
        (4, 2, (1, 3), (1, 3)),
    ],
)
def test_an_uneven_split_keeps_its_pattern(
    layers: int, chunks: int, own: tuple[int, ...] | None, expected: tuple[int, ...]
) -> None:
    assert uneven_stages(layers, chunks, own) == expected
    assert sum(expected) == layers
