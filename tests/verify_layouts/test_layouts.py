from __future__ import annotations

import pytest

from megatron_dsmath.errors import UsageError
from megatron_dsmath.verify_layouts.layouts import Layout, parse, shapes


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
def test_a_name_says_what_differs_from_one_plain_process(name: str, layout: Layout) -> None:
    assert parse(name) == layout
    assert layout.name == name


def test_sizes_of_one_may_be_said_and_are_left_out() -> None:
    assert parse("tp2pp2dp1").name == "tp2pp2"


@pytest.mark.parametrize("name", ["", "tp", "tp0", "tp2tp4", "tp2 pp2", "onetp2", "noopt" + "overlap", "zero1"])
def test_what_is_no_name_is_refused_with_the_words_there_are(name: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(name)
    assert "pp2" in str(refused.value.expected)


def test_four_processes_form_these_shapes() -> None:
    found = {shape.name for shape in shapes(4, (1, 2, 4))}
    # By hand, for worlds of 1, 2 and 4: with and without sequence parallelism, three kinds of stages, three optimizers.
    by_world = {1: 1, 2: 2 + 3 + 3, 4: 2 + 3 + 3 + 2 * 3 + 2 * 3 + 3 * 3}
    assert len(found) == sum(by_world.values())
    assert {"one", "tp4sp", "pp4vpp2", "dp4noopt", "tp2sppp2uneven", "tp2spdp2overlap", "pp2vpp2dp2"} <= found


def test_sizes_that_do_not_divide_the_model_are_left_out() -> None:
    assert not [shape for shape in shapes(4, (1, 2)) if shape.tensor == 4]
