from __future__ import annotations

import pytest

from megatron_dsmath.config import load
from megatron_dsmath.errors import UsageError
from megatron_dsmath.verify_layouts.planted_faults import FAULT_LAYOUTS
from megatron_dsmath.verify_layouts.verify import all_layouts, selected

RUN = load("configs/pretrain/deepseekmath_base_7b.yaml")


def test_all_layouts_have_every_shape_and_every_other_dimension() -> None:
    layouts = all_layouts(RUN, 4)
    names = [layout.name for layout in layouts]
    assert len(set(names)) == len(names)
    assert max(layout.ranks for layout in layouts) == 4
    shapes = {"tp2sp", "tp4", "pp2vpp2", "pp4vpp2", "pp4uneven", "dp2", "dp4noopt", "dp2overlap", "tp2sppp2", "pp2dp2"}
    others = {"mb1", "selective", "full", "bf16", "tp2sppacked", "pp4packed", "dp2packed"}
    assert shapes | others <= set(names)


def test_a_run_that_packs_documents_is_verified_packed() -> None:
    run = load("configs/pretrain/deepseekmath_base_7b.yaml", ["data.attend_across_documents=false"])
    packed = [layout for layout in all_layouts(run, 4) if layout.packed]
    assert len(packed) > 40


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("tp2,dp8", "takes 8 processes"),
        ("tp3", "does not divide the run's model"),
        ("pp3", "do not divide into equal stages"),
        ("sp", "there is one"),
        ("vpp2", "there is one"),
        ("dp4mb4", "do not divide the global batch"),
    ],
)
def test_what_cannot_be_formed_is_refused_with_what_can(names: str, reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        selected(RUN, names, 4, None)
    assert reason in refused.value.what
    assert "tp2sppp2vpp2" in str(refused.value.expected)


def test_a_planted_fault_brings_layouts_in_which_it_is_one() -> None:
    for fault, names in FAULT_LAYOUTS.items():
        assert [layout.name for layout in selected(RUN, None, 4, fault)] == list(names)
    with pytest.raises(UsageError):
        selected(RUN, None, 4, "no-such-fault")
    with pytest.raises(UsageError):
        selected(RUN, None, 0, None)
