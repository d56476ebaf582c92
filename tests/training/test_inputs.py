"""The differences between a checkpoint and the run file that continues it: allowed, or refused unless listed."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from megatron_dsmath.checkpoint.manifest import Manifest
from megatron_dsmath.config.sections import AllowedChange, RunConfig
from megatron_dsmath.errors import DsmathError
from megatron_dsmath.training.inputs import deciding_keys, refuse_changes
from tests.support.runs import run_config

OLD, NEW = "a" * 64, "b" * 64  # fingerprints


def manifest(run: RunConfig) -> Manifest:
    facts: dict[str, Any] = {"kind": "training", "step": 4, "next_sample": 32, "consumed_tokens": 1024, "state": {}}
    return Manifest(
        **facts, model=run.model, layout={}, precision="fp32", tokenizer_fingerprint=OLD, run=deciding_keys(run, 4)
    )


def refusal(fingerprint: str = OLD, **changes: Any) -> str:
    """The error for continuing the small run with these changes; empty where they are allowed."""
    try:
        refuse_changes(Path("step_4"), manifest(run_config()), run_config(**changes), fingerprint)
    except DsmathError as error:
        return str(error)
    return ""


CORPORA = [
    {"name": "mathematics", "weight": 1.0, "paths": ["data/mathematics", "data/more"], "max_epochs": None},
    {"name": "novels", "weight": 1.0, "paths": ["data/novels"], "max_epochs": None},
]
CHANGES: dict[str, tuple[dict[str, Any], str, dict[str, tuple[str, str]]]] = {
    "seed": ({"seed": 8}, "seed", {"seed": ("7", "8")}),
    "batch": (
        {"schedule__sequences_per_step": 16},
        "schedule.sequences_per_step",
        {"schedule.sequences_per_step": ("8", "16")},
    ),
    "sequence length": ({"data__sequence_length": 64}, "data.sequence_length", {"data.sequence_length": ("32", "64")}),
    "held-out share": ({"data__held_out_share": 0.2}, "data.held_out_share", {"data.held_out_share": ("0.1", "0.2")}),
    "tokenizer": ({"fingerprint": NEW}, "data.tokenizer", {"data.tokenizer": (OLD, NEW)}),
    "mixture": (
        {"data__corpora": CORPORA},
        "data.corpora",
        {
            "data.corpora.mathematics.weight": ("3.0", "1.0"),
            "data.corpora.mathematics.paths": ("['data/mathematics']", "['data/mathematics', 'data/more']"),
            "data.corpora.code.weight": ("1.0", "absent"),
            "data.corpora.code.paths": ("['data/code']", "absent"),
            "data.corpora.novels.weight": ("absent", "1.0"),
            "data.corpora.novels.paths": ("absent", "['data/novels']"),
        },
    ),
}


@pytest.mark.fault(
    "R16",
    injected="batch, sequence length, mixture, seed or tokenizer changed when the run continues",
    where="the check before any process starts",
    holds="refused with each key and its old and new value, unless `checkpoint.allowed_changes` lists the key",
)
@pytest.mark.parametrize("what", CHANGES)
def test_a_change_is_refused_with_each_key_old_and_new_and_allowed_by_naming_it(what: str) -> None:
    changes, flag, keys = CHANGES[what]
    said = refusal(**changes)
    assert said.count("error[checkpoint]") == len(keys)
    for key, (old, new) in keys.items():
        facts = f"  where:    step_4\n  found:    {new}\n  expected: {old}\n"
        assert f"{key} differs from the value that the run was trained with\n{facts}" in said
    assert said.count(f"--set 'checkpoint.allowed_changes=[{flag}]'") == len(keys)
    assert refusal(**changes, checkpoint__allowed_changes=[flag]) == ""
    others = [other for other in get_args(AllowedChange) if other != flag]
    assert refusal(**changes, checkpoint__allowed_changes=others) == said


def test_every_deciding_key_can_be_allowed() -> None:
    sections = {"data.corpora" if key.startswith("data.corpora.") else key for key in deciding_keys(run_config(), 4)}
    assert sections | {"data.tokenizer", "schedule.phases"} == set(get_args(AllowedChange))


def test_all_changes_are_named_together() -> None:
    said = refusal(fingerprint=NEW, seed=8, data__sequence_length=64)
    assert said.count("error[checkpoint]") == 3


def test_what_decides_no_token_may_change_unasked() -> None:
    others = {"schedule__steps": 99, "schedule__peak_learning_rate": 1.0, "precision": "bf16", "parallel__tensor": 2}
    assert refusal(**others, data__tokenizer="moved/elsewhere", checkpoint__keep=9, validation__every_steps=0) == ""
