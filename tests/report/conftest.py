"""Run directories written by hand for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

Row = dict[str, Any]
WriteRun = Callable[..., Path]

# The paper's mixture in two corpora: 3 to 1.
RUN: Row = {
    "seed": 7,
    "precision": "bf16",
    "model": {
        "layers": 30,
        "hidden_size": 4096,
        "ffn_hidden_size": 11008,
        "attention_heads": 32,
        "key_value_heads": 32,
        "vocabulary_size": 102400,
        "max_position_embeddings": 4096,
        "norm_epsilon": 1e-6,
        "rope_theta": 10000.0,
        "initial_std": 0.006,
        "initial_weights": None,
        "kernels": "torch",
    },
    "data": {"sequence_length": 64, "corpora": [{"name": "math", "weight": 3.0}, {"name": "code", "weight": 1.0}]},
    "schedule": {"steps": 8, "sequences_per_step": 10},
    "optimizer": {"gradient_clip": 1.0},
    "parallel": {"tensor": 2, "sequence": True, "pipeline": 1, "distributed_optimizer": False},
}


def row(step: int, **more: Any) -> Row:
    """A row of metrics.jsonl as `dsmath train` writes it, with a different value for each metric."""
    return {
        "step": step,
        "consumed_tokens": 640 * step,
        "loss": 10.0 / step,
        "loss_by_corpus": {"math": 9.0 / step, "code": None if step == 2 else 13.0 / step},
        "tokens_by_corpus": {"math": 512 * step, "code": 128 * step},
        "grad_norm": 2.0 / step,
        "learning_rate": 0.001,
        "step_seconds": 0.5,
        "tokens_per_second": 1280.0,
        "mfu": None,
        **more,
    }


VALIDATED = {"validation_loss": 2.625, "validation_loss_by_corpus": {"math": 2.25, "code": 3.75}}


def write(folder: Path, rows: Sequence[Row] | None = None, tail: str = "", run: Row = RUN) -> Path:
    """Write a run's directory with these rows and return it; `tail` is written after the last row."""
    folder.mkdir()
    (folder / "run.yaml").write_text(yaml.safe_dump(run, sort_keys=False, allow_unicode=True))
    rows = [row(1), row(2), row(3), row(4, **VALIDATED)] if rows is None else rows
    (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in rows) + tail)
    return folder


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """`write`, in the test's own folder under a name."""

    def write_named(name: str = "run", *content: Any, **more: Any) -> Path:
        return write(tmp_path / name, *content, **more)

    return write_named
