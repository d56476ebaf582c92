"""Contradictions written into the paper's run file: each error names a key, its line and a fix."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from megatron_dsmath.config import RunConfig, load
from megatron_dsmath.errors import ConfigError
from tests.support.seeded import seeded

Edits = list[tuple[str, str]]
PIPELINE = [("pipeline: 1", "pipeline: 4")]

# contradiction: (edits, key, the text of its line, found, fix)
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
        "1 channels per head",
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
        "30 layers, 4 model chunks",
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
def test_a_contradiction_names_a_key_its_line_and_a_fix(
    contradiction: tuple[Edits, str, str, str, str], tmp_path: Path
) -> None:
    edits, key, at, found, fix = contradiction
    run = seeded(tmp_path, *edits)
    error = run.refusal()
    assert error.where == f"{run.path}:{run.line_of(at)}: {key}"
    assert found in str(error.found)
    assert fix in str(error.fix)
    assert error.expected


def test_a_rule_that_fails_on_a_valid_file_is_not_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def misspelled(run: RunConfig) -> Iterator[ConfigError]:
        yield ConfigError(f"{run.modle}")  # type: ignore[attr-defined]

    monkeypatch.setattr(import_module("megatron_dsmath.config.load"), "RULES", (misspelled,))
    with pytest.raises(AttributeError, match="modle"):
        load(seeded(tmp_path).path)
    error = seeded(tmp_path, ("  layers: 30\n", "")).refusal()  # a value is missing: a rule may need it
    assert "'layers' is missing" in error.what
