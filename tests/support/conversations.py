"""A small run that is fine-tuned on conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.config.source import write
from tests.support.corpora import inputs_tree, tree_with

LENGTH = 256


def sft_tree(folder: Path, output: Path, **overrides: Any) -> dict[str, Any]:
    """The small run on the set at `folder`/set, as `tests.data.sft.sets.small_set` builds it."""
    values = inputs_tree(
        folder,
        output,
        model__max_position_embeddings=LENGTH,
        data__sequence_length=LENGTH,
        data__attend_across_documents=False,
        data__corpora=[],
        data__conversations={"prefix": str(folder / "set"), "packing": "next-fit"},
        schedule__steps=6,
        schedule__sequences_per_step=4,
        schedule__peak_learning_rate=3e-3,
        validation__every_steps=3,
        parallel__microbatch_sequences=1,
    )
    return tree_with(values, **overrides)


def sft_run(folder: Path, output: Path, **overrides: Any) -> RunConfig:
    """The same as the product reads it."""
    return RunConfig.model_validate_json(json.dumps(sft_tree(folder, output, **overrides)))


def write_sft_file(folder: Path, output: Path, path: Path, **overrides: Any) -> Path:
    """The same as a run file at `path`."""
    path.write_text(write(sft_tree(folder, output, **overrides)), encoding="utf-8")
    return path
