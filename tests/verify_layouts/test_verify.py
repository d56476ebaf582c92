"""The verb end to end: every kind of layout is equal to one process, and every planted fault is found and named."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest

from megatron_dsmath import cli
from megatron_dsmath.config import load
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.errors import UsageError
from megatron_dsmath.verify_layouts.compare import FP32, Comparison, RankResult
from megatron_dsmath.verify_layouts.diagnosis import KINDS
from megatron_dsmath.verify_layouts.layouts import parse_layout
from megatron_dsmath.verify_layouts.verify import (
    LayoutComparer,
    all_layouts,
    compare_layouts,
    print_comparisons,
    select_layouts,
)
from tests.verify_layouts.planted_faults import FAULTS, measure_with_fault

PATH = "configs/pretrain/deepseekmath_base_7b.yaml"
RUN = load(PATH)
EVERY_KIND = "tp2sp,pp2vpp2,dp2,dp2overlap,tp2pp2packed,pp4uneven,dp2mb1full,bf16"


@pytest.fixture(scope="module")
def comparer(tmp_path_factory: pytest.TempPathFactory) -> LayoutComparer:
    return LayoutComparer(RUN, 4, tmp_path_factory.mktemp("layouts"))


def not_equal(rows: list[Comparison]) -> list[Comparison]:
    return [row for row in rows if row.verdict != "equal"]


def test_all_layouts_include_every_shape_and_every_other_setting() -> None:
    layouts = all_layouts(RUN, 4)
    names = [layout.name for layout in layouts]
    assert len(set(names)) == len(names)
    assert max(layout.ranks for layout in layouts) == 4
    shapes = {"tp2sp", "tp4", "pp2vpp2", "pp4vpp2", "pp4uneven", "dp2", "dp4noopt", "dp2overlap", "tp2sppp2", "pp2dp2"}
    others = {"mb1", "selective", "full", "bf16", "tp2sppacked", "pp4packed", "dp2packed"}
    assert shapes | others <= set(names)


def test_a_run_that_packs_documents_is_compared_with_packed_documents() -> None:
    run = load(PATH, ["data.attend_across_documents=false"])
    packed = [layout for layout in all_layouts(run, 4) if layout.packed]
    assert len(packed) > 40


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        ("tp2,dp8", "takes 8 processes"),
        ("tp3", "does not divide the run's model"),
        ("pp3", "do not divide into equal stages"),
        ("sp", "needs several tensor-parallel ranks"),
        ("vpp2", "need several pipeline stages"),
        ("dp4mb4", "do not divide the global batch"),
    ],
)
def test_a_layout_that_is_not_possible_is_refused_with_those_that_are(names: str, reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        select_layouts(RUN, names, 4)
    assert reason in refused.value.what
    assert "tp2sppp2vpp2" in str(refused.value.expected)


def test_every_kind_of_layout_computes_what_one_process_computes(comparer: LayoutComparer) -> None:
    rows = [comparer.compare(layout) for layout in select_layouts(RUN, EVERY_KIND, 4)]
    assert [row.layout for row in rows] == EVERY_KIND.split(",")
    assert not_equal(rows) == []
    for row in rows:
        assert row.gradient is not None
        assert row.gradient <= FP32.gradient or row.layout == "bf16"
    assert any(row.gradient for row in rows)  # sums in another order are not bit-identical: something was compared


def test_one_process_computes_what_transformers_computes(comparer: LayoutComparer) -> None:
    pytest.importorskip("transformers")
    for layout in select_layouts(RUN, "one,packed", 4):
        comparer.compare(layout)
    rows = list(comparer.compare_with_transformers())
    assert len(rows) == 2
    assert not_equal(rows) == []


@pytest.mark.parametrize(
    ("fault", "layout"), [(name, layout) for name, fault in FAULTS.items() for layout in fault.layouts]
)
def test_a_planted_fault_is_found_and_named(fault: str, layout: str, comparer: LayoutComparer) -> None:
    row = comparer.compare(parse_layout(layout), partial(measure_with_fault, fault))
    assert row.verdict == "differs"
    assert (row.kind, row.first_parameter) == (FAULTS[fault].kind, FAULTS[fault].first_parameter)
    assert row.kind in KINDS


def raise_error(run: RunConfig, weights: Path) -> RankResult:
    raise KeyError("no-such-key")


def test_a_layout_that_does_not_run_is_reported_with_its_error(comparer: LayoutComparer) -> None:
    row = comparer.compare(parse_layout("dp2"), raise_error)
    assert (row.verdict, row.kind) == ("differs", "failed")
    assert row.evidence == "KeyError: 'no-such-key'"


def test_a_difference_is_printed_with_its_kind_and_gives_exit_code_1(
    comparer: LayoutComparer, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [comparer.compare(parse_layout("one"), partial(measure_with_fault, "norms-decay"))]
    assert print_comparisons(rows, 1, as_json=False) == 1
    shown = capsys.readouterr().out
    assert KINDS["decay"] in shown
    assert "first parameter that differs: model.layers.0.input_layernorm.weight" in shown


def test_the_verb_compares_one_process_with_transformers(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify-layouts", PATH, "--layouts", "one", "--ranks", "1", "--json"]) == 0
    first, *others = json.loads(capsys.readouterr().out)
    assert (first["layout"], first["verdict"], first["gradient"]) == ("one", "equal", 0.0)
    assert others[0]["layout"].startswith("transformers")


@pytest.mark.parametrize("arguments", [["--layouts", "tp3"], ["--layouts", "nothing"], ["--ranks", "0"]])
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify-layouts", PATH, *arguments]) == 78
    assert "error[usage]" in capsys.readouterr().err


def test_a_run_file_that_does_not_exist_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify-layouts", str(tmp_path / "none.yaml")]) == 78
    assert "none.yaml" in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("ranks", [4, 8])
@pytest.mark.parametrize("attend_across_documents", ["true", "false"])
def test_every_possible_layout_is_equal(ranks: int, attend_across_documents: str) -> None:
    run = load(PATH, [f"data.attend_across_documents={attend_across_documents}"])
    assert not_equal(list(compare_layouts(run, all_layouts(run, ranks), ranks))) == []


@pytest.mark.long
def test_grouped_query_attention_and_the_runs_own_uneven_split_are_equal() -> None:
    run = load(PATH, ["model.key_value_heads=8", "parallel.pipeline=4", "parallel.stage_layers=[7,8,8,7]"])
    layouts = select_layouts(run, "tp2sp,tp4,pp4uneven,tp2pp2uneven,dp2,pp2vpp2packed", 4)
    assert not_equal(list(compare_layouts(run, layouts, 4))) == []
