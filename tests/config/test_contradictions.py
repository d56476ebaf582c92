"""Values that cannot stand together in the paper's run: each refusal names one of them, its line and a way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_dsmath.config import load
from megatron_dsmath.config.layout_contradictions import even_stages
from megatron_dsmath.errors import LayoutError
from tests.support.seeded import PAPER_RUN, seeded

Edits = list[tuple[str, str]]
PIPELINE = [("pipeline: 1", "pipeline: 4")]
INTERLEAVED = ["parallel.pipeline=2", "parallel.virtual_stages=2", "parallel.stage_layers=[8, 7, 7, 8]"]

# what contradicts: (edits, key, the text of its line, found, fix)
CONTRADICTIONS: dict[str, tuple[Edits, str, str, str, str]] = {
    "heads that do not divide the width": (
        [("attention_heads: 32", "attention_heads: 30"), ("key_value_heads: 32", "key_value_heads: 10")],
        "model.attention_heads",
        "attention_heads: 30",
        "30 heads, hidden_size 4096",
        "model.attention_heads: 32",
    ),
    "heads of odd size": (
        [("  attention_heads: 32", "  attention_heads: 4096"), ("key_value_heads: 32", "key_value_heads: 4096")],
        "model.attention_heads",
        "  attention_heads: 4096",
        "1 channels a head",
        "another model.attention_heads",
    ),
    "groups that do not divide the heads": (
        [("key_value_heads: 32", "key_value_heads: 6"), ("tensor: 2", "tensor: 1"), ("ence: true", "ence: false")],
        "model.key_value_heads",
        "key_value_heads: 6",
        "6 groups for 32 heads",
        "model.key_value_heads: 4",
    ),
    "tensor ranks that divide neither heads nor feed-forward": (
        [("tensor: 2", "tensor: 3"), ("sequence: true", "sequence: false")],
        "parallel.tensor",
        "tensor: 3",
        "model.attention_heads 32, model.key_value_heads 32, model.ffn_hidden_size 11008, model.vocabulary_size 102400",
        "parallel.tensor: 2",
    ),
    "sequence parallelism on one rank": (
        [("tensor: 2", "tensor: 1")],
        "parallel.sequence",
        "sequence: true",
        "parallel.tensor 1",
        "parallel.sequence: false",
    ),
    "a sequence that the ranks cannot share": (
        [("sequence_length: 4096", "sequence_length: 4095")],
        "data.sequence_length",
        "sequence_length: 4095",
        "4095, parallel.tensor 2",
        "parallel.sequence: false",
    ),
    "stages of unequal length that are not written out": (
        PIPELINE,
        "parallel.pipeline",
        "pipeline: 4",
        "30 layers, 4 pieces",
        "parallel.stage_layers: [7, 8, 8, 7]",
    ),
    "stages that hold too many layers": (
        [*PIPELINE, ("layers: null", "layers: [8, 8, 8, 8]")],
        "parallel.stage_layers",
        "layers: [8, 8, 8, 8]",
        "32 layers",
        "[7, 8, 8, 7]",
    ),
    "too few stages": (
        [*PIPELINE, ("layers: null", "layers: [10, 10, 10]")],
        "parallel.stage_layers",
        "layers: [10, 10, 10]",
        "[10, 10, 10]",
        "[7, 8, 8, 7]",
    ),
    "virtual stages without a pipeline": (
        [("virtual_stages: 1", "virtual_stages: 2")],
        "parallel.virtual_stages",
        "virtual_stages: 2",
        "parallel.pipeline 1",
        "parallel.virtual_stages: 1",
    ),
    "overlap without the distributed optimizer": (
        [("distributed_optimizer: true", "distributed_optimizer: false")],
        "parallel.overlap_communication",
        "overlap_communication: true",
        "distributed_optimizer false",
        "distributed_optimizer: true",
    ),
    "microbatches that do not divide the batch": (
        [("microbatch_sequences: 1", "microbatch_sequences: 7")],
        "parallel.microbatch_sequences",
        "microbatch_sequences: 7",
        "7, schedule.sequences_per_step 2560",
        "microbatch_sequences: 8",
    ),
    "sequences longer than the positions": (
        [("embeddings: 4096", "embeddings: 2048")],
        "data.sequence_length",
        "sequence_length: 4096",
        "4096, model.max_position_embeddings 2048",
        "model.max_position_embeddings: 4096",
    ),
    "documents kept apart by kernels that cannot": (
        [("across_documents: true", "across_documents: false"), ("kernels: torch", "kernels: transformer_engine")],
        "data.attend_across_documents",
        "attend_across_documents: false",
        "model.kernels transformer_engine",
        "model.kernels: torch",
    ),
    "corpora and conversations": (
        [("conversations: null", "conversations: {prefix: data/instruct, packing: next-fit}")],
        "data.conversations",
        "conversations: {prefix",
        "both",
        "data.conversations: null",
    ),
    "two corpora of one name": (
        [("name: github_code", "name: arxiv")],
        "data.corpora.3.name",
        "[data/github_code/*]",
        "arxiv",
        "data.corpora.2.paths",
    ),
    "drops out of order": (
        [("{after: 0.8,", "{after: 0.95,")],
        "schedule.drops.1.after",
        "{after: 0.9,",
        "0.9 after 0.95",
        "sort schedule.drops",
    ),
    "a drop that raises the rate": (
        [("factor: 0.1}", "factor: 0.5}")],
        "schedule.drops.1.factor",
        "factor: 0.5}",
        "0.5 after 0.316",
        "the largest first",
    ),
    "a warm-up longer than the run": (
        [("steps: 47684", "steps: 1000")],
        "schedule.warmup_steps",
        "warmup_steps: 2000",
        "2000, schedule.steps 1000",
        "shorten the warm-up",
    ),
    "rewinding past what is kept": (
        [("spike: flag", "spike: rewind"), ("rewind_steps: 100", "rewind_steps: 1001")],
        "guard.rewind_steps",
        "rewind_steps: 1001",
        "1001, checkpoint.keep 3, checkpoint.every_steps 500",
        "checkpoint.keep: 4",
    ),
    "rewinding without saves at known steps": (
        [
            ("non_finite: stop", "non_finite: rewind"),
            ("every_steps: 500\n  every_minutes", "every_steps: 0\n  every_minutes"),
        ],
        "guard.non_finite",
        "non_finite: rewind",
        "checkpoint.every_steps 0",
        "skip",
    ),
}


@pytest.mark.parametrize("contradiction", CONTRADICTIONS.values(), ids=CONTRADICTIONS.keys())
def test_a_contradiction_names_a_key_its_line_and_a_way_out(
    contradiction: tuple[Edits, str, str, str, str], tmp_path: Path
) -> None:
    edits, key, at, found, fix = contradiction
    run = seeded(tmp_path, *edits)
    error = run.refusal()
    assert error.where == f"{run.path}:{run.line_of(at)}: {key}"
    assert found in str(error.found)
    assert fix in str(error.fix)
    assert error.expected


@pytest.mark.parametrize(
    ("world_size", "overrides", "found", "fix"),
    [
        (7, [], "7 processes, tensor 2 x pipeline 1", "--nproc 2"),
        (1, [], "1 processes, tensor 2 x pipeline 1", "--nproc 2"),
        (6, [], "3 data-parallel processes x microbatches of 1", "sequences_per_step: 2562"),
        (16, [*INTERLEAVED, "schedule.sequences_per_step=12"], "3 microbatches, 2 stages", "virtual_stages: 1"),
    ],
)
def test_a_layout_that_the_processes_cannot_hold_is_refused(
    world_size: int, overrides: list[str], found: str, fix: str, tmp_path: Path
) -> None:
    error = seeded(tmp_path).refusal(overrides, world_size)
    assert isinstance(error, LayoutError)
    assert found in str(error.found)
    assert fix in str(error.fix)


@pytest.mark.parametrize("tensor", [1, 2, 4, 8])
@pytest.mark.parametrize("pipeline", [1, 2, 3, 5])
def test_every_layout_of_the_paper_run_is_accepted(tensor: int, pipeline: int) -> None:
    layout = [f"parallel.tensor={tensor}", f"parallel.pipeline={pipeline}", f"parallel.sequence={tensor > 1}".lower()]
    run = load(PAPER_RUN, layout, world_size=tensor * pipeline * 4)
    assert run.parallel.model_size == tensor * pipeline


def test_thirty_layers_over_four_stages_are_7_8_8_7() -> None:
    assert even_stages(30, 4) == [7, 8, 8, 7]
    assert load(PAPER_RUN, ["parallel.pipeline=4", "parallel.stage_layers=[7, 8, 8, 7]"], world_size=8)


@pytest.mark.parametrize(("layers", "pieces"), [(30, 4), (30, 8), (7, 3), (2, 2), (31, 30)])
def test_suggested_stages_hold_every_layer_and_differ_by_one_at_most(layers: int, pieces: int) -> None:
    stages = even_stages(layers, pieces)
    assert (sum(stages), len(stages)) == (layers, pieces)
    assert max(stages) - min(stages) <= 1
