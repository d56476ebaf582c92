"""Mistakes written into the paper's run file, one at a time: each error names its key, its line and a fix."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.seeded import seeded

WHOLE = "a whole number"
SECTIONS = "one of output, seed, precision, model"

# mistake: (text of the file, replacement, key, found, expected, fix)
SEEDED = {
    "text for a whole number": ("layers: 30", "layers: thirty", "model.layers", "thirty", WHOLE, "Decoder layers"),
    "a quoted number": ("layers: 30", "layers: '30'", "model.layers", "'30'", WHOLE, "without quotes"),
    "a boolean for a number": ("layers: 30", "layers: true", "model.layers", "true", WHOLE, "write digits"),
    "a boolean for a share": ("beta1: 0.9", "beta1: true", "optimizer.beta1", "true", "a number", "first moment"),
    "a list for a number": ("layers: 30", "layers: [30]", "model.layers", "[30]", WHOLE, "write digits"),
    "half a step": ("steps: 47684", "steps: 47684.5", "schedule.steps", "47684.5", WHOLE, "write digits"),
    "an octal number": ("seed: 1234", "seed: 010", "seed", "'010'", WHOLE, "write digits"),
    "a number beyond 64 bits": ("seed: 1234", f"seed: {10**30}", "seed", "1000000", WHOLE, "write digits"),
    "a number for text": ("project: deepseekmath", "project: 42", "tracking.wandb_project", "42", "text", '"quotes"'),
    "a word for a boolean": ("ence: true", "ence: yes", "parallel.sequence", "yes", "true or false", "write true or"),
    "a number for a boolean": ("ence: true", "ence: 1", "parallel.sequence", "1", "true or false", "write true or"),
    "no value": ("keep: 3", "keep:", "checkpoint.keep", "null", WHOLE, "Newest checkpoints"),
    "another precision": ("precision: bf16", "precision: fp8", "precision", "fp8", "'fp32' or 'bf16'", "one of these"),
    "other kernels": ("kernels: torch", "kernels: jax", "model.kernels", "jax", "'torch' or 'transformer", "one of"),
    "no layers": ("layers: 30", "layers: 0", "model.layers", "0", "greater than 0", "in this range"),
    "a negative seed": ("seed: 1234", "seed: -1", "seed", "-1", "greater than or equal to 0", "in this range"),
    "a negative weight": (
        "weight: 56.0",
        "weight: -5",
        "data.corpora.0.weight",
        "-5",
        "greater than or equal to 0",
        "share of",
    ),
    "a weight that is NaN": ("weight: 4.0", "weight: .nan", "data.corpora.1.weight", ".nan", "a finite", "share of"),
    "an infinite rate": ("rate: 4.2e-4", "rate: .inf", "schedule.peak_learning_rate", ".inf", "a finite", "warm-up"),
    "a percentage": ("after: 0.8", "after: 80", "schedule.drops.0.after", "80", "less than 1", "share of the run"),
    "all held out": ("share: 0.0005", "share: 0.5", "data.held_out_share", "0.5", "less than 0.5", "validation"),
    "one checkpoint": ("keep: 3", "keep: 1", "checkpoint.keep", "1", "greater than or equal to 2", "in this range"),
    "a space in a name": ("name: arxiv", "name: ar xiv", "data.corpora.2.name", "ar xiv", "letters", "remove every"),
    "a path that is no list": ("[data/arxiv/*]", "a/*", "data.corpora.2.paths", "a/*", "a list", "write [one, two]"),
    "an empty list": (
        "paths: [data/arxiv/*]",
        "paths: []",
        "data.corpora.2.paths",
        "[]",
        "a list of at least one",
        "add one",
    ),
    "a wrong value in a list": ("[data/arxiv/*]", "[1]", "data.corpora.2.paths.0", "1", "text", "Prefixes of"),
    "a word for a list": ("layers: null", "layers: even", "parallel.stage_layers", "even", "a list or null", "[7, 8"),
    "a number for a drop": ("{after: 0.8, factor: 0.316}", "0.8", "schedule.drops.0", "0.8", "a section", "key: value"),
    "a typo": ("  layers: 30", "  layrs: 30", "model.layrs", "model.layrs", "model.layers", "write model.layers"),
    "a section's typo": ("schedule:\n", "scheduel:\n", "scheduel", "scheduel", "schedule", "write schedule"),
    "a typo in a list": ("arxiv, weight", "arxiv, wieght", "data.corpora.2.wieght", "wieght", "2.weight", "2.weight"),
    "Megatron-LM's name": ("  layers: 30", "  num_layers: 30", "model.num_layers", "num_", "model.layers", "write mod"),
    "the wrong section": ("keep: 3", "keep: 3\n  beta2: 0", "checkpoint.beta2", "beta2", "optimizer.beta2", "write"),
    "a key like no other": ("keep: 3", "keep: 3\n  zzz: 1", "checkpoint.zzz", "zzz", "one of every_steps", "delete it"),
    "an unknown section": ("seed: 1234", "seed: 1\nmagic: {x: 3}", "magic", "magic", SECTIONS, "delete it"),
    "a number for a key": ("seed: 1234", "seed: 1\n2024: 7", "2024", "2024", SECTIONS, "docs/reference/config.md"),
    "a date for a key": ("seed: 1234", "seed: 1\n2024-01-01: 7", "2024-01-01", "2024", SECTIONS, "delete it"),
    "a merge key": ("seed: 1234", "seed: 1\n<<: {x: 3}", "<<", "<<", SECTIONS, "delete it"),
    "a key twice": ("seed: 1234", "seed: 1\nseed: 2", "seed", "first on line 5", "each key once", "delete one"),
}


@pytest.mark.parametrize("mistake", SEEDED.values(), ids=SEEDED.keys())
def test_a_mistake_names_its_key_its_line_and_a_fix(mistake: tuple[str, ...], tmp_path: Path) -> None:
    old, new, key, found, expected, fix = mistake
    run = seeded(tmp_path, (old, new))
    line = run.line_of(new) + new.rstrip().count("\n")
    error = run.refusal()
    assert error.where == f"{run.path}:{line}: {key}"
    assert found in str(error.found)
    assert expected in str(error.expected)
    assert fix in str(error.fix)
    assert error.exit_code == 78


def test_a_missing_key_names_the_line_of_its_section_and_its_meaning(tmp_path: Path) -> None:
    run = seeded(tmp_path, ("  gradient_clip: 1.0\n", ""))
    error = run.refusal()
    assert error.where == f"{run.path}:{run.line_of('  beta1: 0.9') - 1}: optimizer.gradient_clip"
    assert "Largest norm of all gradients" in str(error.expected)
    assert "add optimizer.gradient_clip" in str(error.fix)


def test_a_missing_section_names_itself(tmp_path: Path) -> None:
    run = seeded(tmp_path, ("validation:\n  every_steps: 500\n  sequences_per_corpus: 256\n", ""))
    error = run.refusal()
    assert error.where == f"{run.path}: validation"
    assert "held-out data" in str(error.expected)


def test_a_value_instead_of_a_section_is_one_mistake(tmp_path: Path) -> None:
    run = seeded(tmp_path, ("validation:\n  every_steps: 500\n  sequences_per_corpus: 256\n", "validation: often\n"))
    error = run.refusal()
    assert error.where == f"{run.path}:{run.line_of('validation: often')}: validation"
    assert (error.found, error.expected) == ("often", "a section")


def test_mistakes_of_every_kind_are_reported_at_once(tmp_path: Path) -> None:
    run = seeded(
        tmp_path,
        ("seed: 1234", "seed: 1234\nseed: 1234"),
        ("hidden_size: 4096\n  ffn", "hiden_size: 4096\n  ffn"),
        ("weight: 20.0", "weight: -20.0"),
        ("  warmup_steps: 2000\n", ""),
        ("tensor: 2", "tensor: '2'"),
        ("stage_layers: null", "stage_layers: [7, 8, 8, 7]"),
        ("max_position_embeddings: 4096", "max_position_embeddings: 2048"),
        ("precision: bf16", "precision: bf16\nmagic: 1"),
    )
    keys = {str(error.where).rpartition(" ")[2] for error in run.refusals(["schedule.stesp=3", "tracking"])}
    assert keys == {
        "seed",
        "model.hiden_size",
        "data.corpora.3.weight",
        "schedule.warmup_steps",
        "schedule.stesp",
        "tracking",
        "parallel.tensor",
        "parallel.stage_layers",
        "data.sequence_length",
        "magic",
    }


def test_a_rule_that_needs_a_missing_value_still_reports_earlier_errors(tmp_path: Path) -> None:
    run = seeded(tmp_path, ("attention_heads: 32", "attention_heads: 30"), ("  key_value_heads: 32\n", ""))
    keys = [str(error.where).rpartition(" ")[2] for error in run.refusals()]
    assert keys == ["model.key_value_heads", "model.attention_heads"]
