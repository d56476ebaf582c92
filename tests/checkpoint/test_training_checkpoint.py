from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_dsmath.checkpoint.from_huggingface import HuggingFaceFolder
from megatron_dsmath.checkpoint.training_checkpoint import ShardedWeights
from megatron_dsmath.checkpoint.weight_reader import tensor_shapes
from tests.checkpoint.llama import same_bits, tensors_of, write_llama
from tests.checkpoint.ranks import save_training_shards
from tests.support.ranks import run_ranks
from tests.support.runs import run_config

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tensor 2": (2, {"parallel__tensor": 2}),
    "pipeline 2, virtual 2": (2, {"parallel__pipeline": 2, "parallel__virtual_stages": 2}),
    "stages of 1 and 3": (2, {"parallel__pipeline": 2, "parallel__stage_layers": (1, 3)}),
    "data 2": (2, {}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("hf") / "llama", vocab_size=96, num_hidden_layers=4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_shards_of_every_layout_are_read_as_the_same_whole_tensors(
    folder: Path, tmp_path: Path, layout: str, precision: str
) -> None:
    size, overrides = LAYOUTS[layout]
    run = run_config(precision=precision, **overrides)
    run_ranks(size, save_training_shards, run, folder, tmp_path / "shards")
    model = HuggingFaceFolder(folder).model
    weights = ShardedWeights(tmp_path / "shards", model, (), {})
    read = {name: weights.read_whole(name) for name in tensor_shapes(model)}
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    assert same_bits(read, {name: tensor.to(dtype) for name, tensor in tensors_of(folder).items()})
