from __future__ import annotations

from pathlib import Path

import pytest
import torch

from megatron_dsmath.checkpoint.checkpoint_weights import WeightsCheckpoint
from megatron_dsmath.checkpoint.from_huggingface import HuggingFaceFolder, import_folder
from megatron_dsmath.checkpoint.manifest import check_same_model
from megatron_dsmath.checkpoint.weights import open_weights
from megatron_dsmath.errors import CheckpointError, ConversionError
from tests.checkpoint.llama import write_llama, write_llama_with_tokenizer
from tests.support.runs import run_config

QUERY = "model.layers.1.self_attn.q_proj.weight"


def test_a_folder_and_its_import_have_equal_weights(tmp_path: Path) -> None:
    folder = write_llama_with_tokenizer(tmp_path / "hf")
    import_folder(folder, tmp_path / "checkpoint", gate=False)
    folder_weights, checkpoint_weights = open_weights(folder), open_weights(tmp_path / "checkpoint")
    assert isinstance(folder_weights, HuggingFaceFolder) and isinstance(checkpoint_weights, WeightsCheckpoint)
    assert checkpoint_weights.model == folder_weights.model
    assert torch.equal(checkpoint_weights.read_whole(QUERY), folder_weights.read_whole(QUERY))
    assert [file.name for file in checkpoint_weights.tokenizer_files] == sorted(
        file.name for file in folder_weights.tokenizer_files
    )
    assert (
        checkpoint_weights.special_token_ids
        == folder_weights.special_token_ids
        == {"bos_token_id": 0, "eos_token_id": 1}
    )


def test_reading_with_another_shape_is_refused(tmp_path: Path) -> None:
    weights = open_weights(write_llama(tmp_path / "hf"))
    with pytest.raises(ConversionError, match=r"q_proj.*\n.*\[48, 48\]\n.*\[48, 40\]"):
        weights.read(QUERY, (48, 40), (slice(None), slice(None)))


def test_each_of_two_ranks_verifies_its_half(tmp_path: Path) -> None:
    import_folder(write_llama_with_tokenizer(tmp_path / "hf"), tmp_path / "checkpoint", gate=False)
    file = tmp_path / "checkpoint/weights/model.safetensors"  # the largest file, which rank 0 verifies
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    open_weights(tmp_path / "checkpoint", rank=1, size=2).close()
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        open_weights(tmp_path / "checkpoint", rank=0, size=2)


@pytest.mark.parametrize("name", ["nowhere", "empty"])
def test_a_path_without_weights_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=name):
        open_weights(tmp_path / name)


def test_weights_of_another_model_are_refused_with_every_key_that_differs() -> None:
    found = run_config(model__layers=5, model__rope_theta=5e5).model
    with pytest.raises(CheckpointError) as caught:
        check_same_model(found, run_config().model)
    text = caught.value.text()
    assert "model.layers, model.rope_theta" in text
    assert "layers 5, rope_theta 500000.0" in text
    assert "layers 4, rope_theta 10000.0" in text


def test_fields_that_do_not_affect_weights_may_differ() -> None:
    found = run_config(
        model__max_position_embeddings=128,
        model__initial_std=0.2,
        model__kernels="transformer_engine",
        model__initial_weights="elsewhere",
    )
    check_same_model(found.model, run_config().model)
