from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_dsmath.checkpoint import store
from megatron_dsmath.checkpoint.from_huggingface import HuggingFaceFolder, import_folder
from megatron_dsmath.checkpoint.huggingface_config import model_from
from megatron_dsmath.checkpoint.weight_reader import tensor_shapes
from tests.checkpoint.llama import (
    edit_config,
    edit_tensors,
    same_bits,
    tensors_of,
    write_llama,
)
from tests.checkpoint.ranks import logits
from tests.support.ranks import run_ranks
from tests.support.runs import run_config

QUERY = "model.layers.1.self_attn.q_proj.weight"


def run_of(folder: Path, **overrides: Any) -> Any:
    """A run of the folder's model."""
    model = HuggingFaceFolder(folder).model
    shape = {f"model__{key}": value for key, value in model.model_dump().items() if key != "initial_weights"}
    return run_config(**shape, **overrides)


def transformers_logits(folder: Path, tokens: list[list[int]]) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        output: torch.Tensor = AutoModelForCausalLM.from_pretrained(folder)(torch.tensor(tokens)).logits
    return output


TOKENS = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3, 5, 8, 9, 7, 9, 3]]
# Both sum the same products in fp32 in different orders; the logits are of order 1, the largest difference was 1.3e-6.
TOLERANCE = 1e-5


@pytest.mark.parametrize(
    "shape", [{}, {"num_key_value_heads": 6}, {"num_key_value_heads": 1, "hidden_size": 60, "intermediate_size": 77}]
)
def test_logits_of_an_import_equal_those_of_transformers(tmp_path: Path, shape: dict[str, int]) -> None:
    folder = write_llama(tmp_path / "hf", **shape)
    import_folder(folder, tmp_path / "checkpoint", gate=False)
    (ours,) = run_ranks(1, logits, run_of(folder), tmp_path / "checkpoint", TOKENS)
    theirs = transformers_logits(folder, TOKENS)
    assert theirs.std() > 0.1
    torch.testing.assert_close(torch.from_numpy(ours), theirs, atol=TOLERANCE, rtol=0)


def test_two_tensor_parallel_ranks_compute_halves_of_the_same_logits(tmp_path: Path) -> None:
    folder = write_llama(tmp_path / "hf", vocab_size=98)
    import_folder(folder, tmp_path / "checkpoint", gate=False)
    halves = run_ranks(2, logits, run_of(folder, parallel__tensor=2), tmp_path / "checkpoint", TOKENS)
    ours = torch.cat([torch.from_numpy(half) for half in halves], dim=-1)
    torch.testing.assert_close(ours, transformers_logits(folder, TOKENS), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_checkpoint_holds_the_folders_tensors_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = write_llama(tmp_path / "hf", dtype=dtype)
    import_folder(folder, tmp_path / "checkpoint", gate=False)
    assert same_bits(tensors_of(tmp_path / "checkpoint" / "weights"), tensors_of(folder))


def test_a_part_of_a_tensor_is_read_alone(whole: Path) -> None:
    weights = HuggingFaceFolder(whole)
    part = weights.read(QUERY, (48, 48), (slice(8, 16), slice(None)))
    assert torch.equal(part, tensors_of(whole)[QUERY][8:16])


def test_deepseeks_configuration_is_that_of_the_paper(shared_data: Path) -> None:
    path = shared_data / "model" / "deepseek_math_7b_config.json"
    model = model_from(json.loads(path.read_text()), path)
    assert model.vocabulary_size == 102400
    assert model.parameters == 6_910_365_696  # counted by hand from Table 2 of the DeepSeek LLM paper
    assert len(tensor_shapes(model)) == 30 * 9 + 3


def test_the_buffers_of_old_exports_are_left_out_and_reported(folder: Path, tmp_path: Path) -> None:
    edit_tensors(folder, lambda tensors: tensors | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    report = import_folder(folder, tmp_path / "checkpoint", gate=False)
    assert report.skipped == ("model.layers.0.self_attn.rotary_emb.inv_freq",)
    assert "inv_freq" in str(report)


def test_special_ids_of_the_configuration_are_kept_without_generation_settings(folder: Path, tmp_path: Path) -> None:
    (folder / "generation_config.json").unlink()
    edit_config(folder, bos_token_id=11, eos_token_id=[12, 13])
    import_folder(folder, tmp_path / "checkpoint", gate=False)
    settings = json.loads((tmp_path / "checkpoint/tokenizer/generation_config.json").read_text())
    assert (settings["bos_token_id"], settings["eos_token_id"]) == (11, [12, 13])


def test_a_folder_with_several_files_is_read_as_one(in_parts: Path, whole: Path) -> None:
    weights = HuggingFaceFolder(in_parts)
    assert same_bits({name: weights.read_whole(name) for name in tensor_shapes(weights.model)}, tensors_of(whole))


def test_an_import_is_a_checkpoint_that_verifies(whole: Path, tmp_path: Path) -> None:
    import_folder(whole, tmp_path / "checkpoint", gate=False)
    manifest = store.verify(tmp_path / "checkpoint")
    assert (manifest.kind, manifest.step, manifest.precision) == ("weights", 0, "fp32")
    assert manifest.model == HuggingFaceFolder(whole).model
