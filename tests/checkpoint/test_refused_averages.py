from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_dsmath.checkpoint.averaging import average
from megatron_dsmath.errors import CheckpointError, ConversionError, DsmathError, OutputError, UsageError
from tests.checkpoint.llama import edit_tensors, write_llama, write_llama_with_tokenizer

QUERY = "model.layers.1.self_attn.q_proj.weight"


def refused(error: type[DsmathError], words: str, paths: Sequence[Path], out: Path, **options: Any) -> None:
    """The average is refused with these words, and nothing is written."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(error, match=words) as caught:
        average(paths, out, **options)
    assert caught.value.fix
    assert sorted(out.parent.iterdir()) == before


@pytest.mark.parametrize(
    "weights", [[1.0], [1.0, 1.0, 1.0, 1.0], [1.0, -1.0, 1.0], [1.0, math.nan, 1.0], [1.0, math.inf, 1.0], [0.0] * 3]
)
def test_weights_that_give_no_mean_are_refused(folders: list[Path], tmp_path: Path, weights: list[float]) -> None:
    refused(UsageError, "--weights", folders, tmp_path / "mean", weights=weights)


def test_fewer_than_two_checkpoints_are_refused(run: Path, tmp_path: Path) -> None:
    refused(UsageError, "at least two", [run], tmp_path / "mean")
    refused(UsageError, "at least two", [run], tmp_path / "mean", last=1)


def test_last_with_several_paths_or_too_few_checkpoints_is_refused(
    run: Path, folders: list[Path], tmp_path: Path
) -> None:
    refused(UsageError, "--last 2 with 2 paths", [run, run], tmp_path / "mean", last=2)
    refused(CheckpointError, "step_9, step_10, step_200", [run], tmp_path / "mean", last=4)
    refused(CheckpointError, "no complete checkpoint", [folders[0]], tmp_path / "mean", last=2)


def test_a_checkpoint_given_twice_is_refused(run: Path, tmp_path: Path) -> None:
    """Also by two names: a run's directory is its newest checkpoint, and a link."""
    (tmp_path / "link").symlink_to(run)
    refused(UsageError, "given twice", [run, tmp_path / "link"], tmp_path / "mean")
    refused(UsageError, "given twice", [run, run / "checkpoints/step_200"], tmp_path / "mean")


def test_another_model_tokenizer_or_special_token_is_refused(folders: list[Path], tmp_path: Path) -> None:
    other = write_llama_with_tokenizer(tmp_path / "other", num_hidden_layers=4, rope_theta=1e4, intermediate_size=80)
    refused(CheckpointError, r"ffn_hidden_size 80, rope_theta 10000\.0", [folders[0], other], tmp_path / "mean")
    bare = write_llama(tmp_path / "bare", num_hidden_layers=4, vocab_size=320)
    refused(CheckpointError, "no tokenizer", [folders[0], bare], tmp_path / "mean")
    changed = Path(shutil.copytree(folders[1], tmp_path / "changed"))
    tokenizer = json.loads((changed / "tokenizer.json").read_text())
    tokenizer["model"]["merges"].pop()
    (changed / "tokenizer.json").write_text(json.dumps(tokenizer))
    refused(CheckpointError, "different tokenizers", [folders[0], changed], tmp_path / "mean")
    ends = Path(shutil.copytree(folders[1], tmp_path / "ends"))
    settings = json.loads((ends / "generation_config.json").read_text())
    (ends / "generation_config.json").write_text(json.dumps(settings | {"eos_token_id": 7}))
    refused(CheckpointError, "eos_token_id 7", [folders[0], ends], tmp_path / "mean")


def test_a_damaged_source_and_an_existing_output_are_refused(run: Path, folders: list[Path], tmp_path: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    shard = copy / "checkpoints/step_10/shards/__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    refused(CheckpointError, r"__0_0\.distcp", [copy], tmp_path / "mean", last=2)
    refused(OutputError, "exists already", folders, copy)


def test_weights_that_are_not_finite_are_refused(folders: list[Path], tmp_path: Path) -> None:
    broken = Path(shutil.copytree(folders[0], tmp_path / "broken"))
    edit_tensors(broken, lambda tensors: tensors | {QUERY: tensors[QUERY] * torch.nan})
    refused(ConversionError, "NaN", [folders[1], broken], tmp_path / "mean")
