"""The verb end to end: every kind of layout is equal, and every planted mistake is caught and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_dsmath import cli
from megatron_dsmath.config import load
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.verify_layouts import verify
from megatron_dsmath.verify_layouts.compare import FP32, Comparison
from megatron_dsmath.verify_layouts.diagnosis import KINDS
from megatron_dsmath.verify_layouts.planted_faults import FAULT_LAYOUTS
from megatron_dsmath.verify_layouts.verify import all_layouts, selected

RUN = "configs/pretrain/deepseekmath_base_7b.yaml"
EVERY_KIND = "tp2sp,pp2vpp2,dp2,dp2overlap,tp2pp2packed,pp4uneven,dp2mb1full,bf16"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> verify.Bench:
    return verify.Bench(load(RUN), 4, tmp_path_factory.mktemp("bench"))


def differing(rows: list[Comparison]) -> list[Comparison]:
    return [row for row in rows if row.verdict != "equal"]


def test_every_kind_of_layout_computes_what_one_process_computes(bench: verify.Bench) -> None:
    rows = [bench.compared(layout) for layout in selected(load(RUN), EVERY_KIND, 4, None)]
    assert [row.layout for row in rows] == EVERY_KIND.split(",")
    assert differing(rows) == []
    for row in rows:
        assert row.gradient is not None
        assert row.gradient <= FP32.gradient or row.layout == "bf16"
    assert any(row.gradient for row in rows)  # sums in another order are not equal to the bit: it was compared


def test_one_process_computes_what_transformers_computes(bench: verify.Bench) -> None:
    pytest.importorskip("transformers")
    for layout in selected(load(RUN), "one,packed", 4, None):
        bench.compared(layout)
    rows = list(bench.witnessed())
    assert len(rows) == 2
    assert differing(rows) == []


# The kind of each mistake, and where the layouts part: by hand, from what the mistake does.
NAMED = {
    "sum-skipped": ("sum", "model.layers.0.self_attn.o_proj.weight"),
    "backward-sum-skipped": ("backward", "model.embed_tokens.weight"),
    "norm-sum-skipped": ("norm-gradients", "model.layers.0.input_layernorm.weight"),
    "norm-of-parts": ("gradient-norm", "model.embed_tokens.weight"),
    "microbatch-mean": ("averaging", "model.embed_tokens.weight"),
    "rank-mean": ("averaging", "model.embed_tokens.weight"),
    "reduction-skipped": ("reduction", "model.embed_tokens.weight"),
    "norms-decay": ("decay", "model.layers.0.input_layernorm.weight"),
    "layers-renumbered": ("layers", "model.layers.4.input_layernorm.weight"),  # the first of the second stage
    "documents-missing": ("documents", "model.layers.2.self_attn.q_proj.weight"),  # the first of the second of four
    "qkv-order": ("qkv-order", "model.layers.0.self_attn.q_proj.weight"),
    "rotary-convention": ("positions", "model.layers.0.self_attn.q_proj.weight"),
}


@pytest.mark.parametrize(
    ("fault", "layout"), [(fault, layout) for fault, layouts in FAULT_LAYOUTS.items() for layout in layouts]
)
def test_a_planted_mistake_is_caught_and_named(fault: str, layout: str, bench: verify.Bench) -> None:
    (asked,) = selected(load(RUN), layout, 4, None)
    row = bench.compared(asked, fault)
    assert row.verdict == "differs"
    assert (row.kind, row.first_parameter) == NAMED[fault]
    assert row.kind in KINDS


def test_a_layout_that_does_not_run_says_why(bench: verify.Bench) -> None:
    (layout,) = selected(load(RUN), "dp2", 4, None)
    row = bench.compared(layout, "no-such-fault")
    assert (row.verdict, row.kind) == ("differs", "failed")
    assert row.evidence == "KeyError: 'no-such-fault'"


def test_the_verb_prints_a_table_and_what_each_difference_looks_like(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["verify-layouts", RUN, "--layouts", "one", "--ranks", "1"]
    assert cli.main([*arguments, "--plant", "norms-decay"]) == 1
    shown = capsys.readouterr().out
    assert KINDS["decay"] in shown
    assert "first parameter that differs: model.layers.0.input_layernorm.weight" in shown
    assert cli.main([*arguments, "--json"]) == 0
    first, *witnesses = json.loads(capsys.readouterr().out)
    assert (first["layout"], first["verdict"], first["gradient"]) == ("one", "equal", 0.0)
    assert witnesses[0]["layout"].startswith("transformers")


@pytest.mark.parametrize("arguments", [["--layouts", "tp3"], ["--plant", "nothing"], ["--ranks", "0"]])
def test_what_cannot_be_verified_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify-layouts", RUN, *arguments]) == 78
    assert "error[usage]" in capsys.readouterr().err


def test_a_run_file_that_cannot_be_used_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify-layouts", str(tmp_path / "none.yaml")]) == 78
    assert "none.yaml" in capsys.readouterr().err


def run_with(*assignments: str) -> RunConfig:
    return load(RUN, assignments)


@pytest.mark.long
@pytest.mark.parametrize("ranks", [4, 8])
@pytest.mark.parametrize("attend_across_documents", ["true", "false"])
def test_every_layout_that_some_processes_form_is_equal(ranks: int, attend_across_documents: str) -> None:
    run = run_with(f"data.attend_across_documents={attend_across_documents}")
    assert differing(list(verify.verify(run, all_layouts(run, ranks), ranks))) == []


@pytest.mark.long
def test_grouped_query_attention_and_an_uneven_split_of_ones_own_are_equal() -> None:
    run = run_with("model.key_value_heads=8", "parallel.pipeline=4", "parallel.stage_layers=[7,8,8,7]")
    layouts = selected(run, "tp2sp,tp4,pp4uneven,tp2pp2uneven,dp2,pp2vpp2packed", 4, None)
    assert differing(list(verify.verify(run, layouts, 4))) == []
