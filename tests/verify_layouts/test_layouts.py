from __future__ import annotations

import pytest

from megatron_dsmath.errors import UsageError
from megatron_dsmath.verify_layouts.layouts import Layout, layout_shapes, parse_layout


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("one", Layout()),
        ("tp2sp", Layout(tensor=2, sequence=True)),
        ("pp4vpp2", Layout(pipeline=4, virtual_stages=2)),
        ("tp2pp2uneven", Layout(tensor=2, pipeline=2, uneven=True)),
        ("dp2noopt", Layout(data=2, optimizer="noopt")),
        ("dp2overlapmb1", Layout(data=2, optimizer="overlap", microbatch_sequences=1)),
        ("pp2fullpackedbf16", Layout(pipeline=2, recompute="full", packed=True, precision="bf16")),
    ],
)
def test_a_name_lists_what_differs_from_one_plain_process(name: str, layout: Layout) -> None:
    assert parse_layout(name) == layout
    assert layout.name == name


def test_a_size_of_one_may_be_given_and_is_omitted_from_the_name() -> None:
    assert parse_layout("tp2pp2dp1").name == "tp2pp2"


@pytest.mark.parametrize("name", ["", "tp", "tp0", "tp2tp4", "tp2 pp2", "onetp2", "noopt" + "overlap", "zero1"])
def test_an_unknown_name_is_refused_with_the_list_of_words(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_layout(name)
    assert "pp2" in str(refused.value.expected)


def test_four_processes_can_form_these_shapes() -> None:
    found = {shape.name for shape in layout_shapes(4, (1, 2, 4))}
    # By hand, for 1, 2 and 4 processes: with and without sequence parallelism, three kinds of stages, three optimizers.
    by_processes = {1: 1, 2: 2 + 3 + 3, 4: 2 + 3 + 3 + 2 * 3 + 2 * 3 + 3 * 3}
    assert len(found) == sum(by_processes.values())
    assert {"one", "tp4sp", "pp4vpp2", "dp4noopt", "tp2sppp2uneven", "tp2spdp2overlap", "pp2vpp2dp2"} <= found


def test_tensor_sizes_that_do_not_divide_the_model_are_omitted() -> None:
    assert not [shape for shape in layout_shapes(4, (1, 2)) if shape.tensor == 4]
