from __future__ import annotations

import filecmp
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_dsmath.checkpoint import weight_reader
from megatron_dsmath.checkpoint.checkpoint_weights import ShardedWeights
from megatron_dsmath.checkpoint.from_huggingface import HuggingFaceFolder, import_folder
from megatron_dsmath.checkpoint.from_megatron import convert
from megatron_dsmath.checkpoint.to_huggingface import export
from megatron_dsmath.checkpoint.weight_reader import tensor_shapes
from tests.checkpoint.llama import deepseek_shape, same_bits, tensors_of, write_llama, write_random
from tests.checkpoint.ranks import save_as_megatron, save_training_shards
from tests.checkpoint.test_to_huggingface import training_run
from tests.support.ranks import run_ranks
from tests.support.runs import run_config

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "tensor 2": (2, {"parallel__tensor": 2}),
    "pipeline 2, virtual 2": (2, {"parallel__pipeline": 2, "parallel__virtual_stages": 2}),
    "stages of 1 and 3": (2, {"parallel__pipeline": 2, "parallel__stage_layers": (1, 3)}),
    "data 2": (2, {}),
}


DEEPSEEK_LAYOUTS: dict[str, dict[str, Any]] = {
    "one process": {},
    "tensor 2": {"parallel__tensor": 2},
    "pipeline 2": {"parallel__pipeline": 2},
    "tensor 2, pipeline 2": {"parallel__tensor": 2, "parallel__pipeline": 2},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("hf") / "llama", vocab_size=96, num_hidden_layers=4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_shards_of_every_layout_are_read_as_equal_tensors(
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


def test_a_part_of_any_tensor_is_that_part_of_the_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows and columns that cut groups of query, key and value rows, and ranks' parts."""
    monkeypatch.setattr(weight_reader, "BLOCK_VALUES", 7 * 48)  # 7 rows, which divide no tensor
    run_ranks(2, save_training_shards, run_config(parallel__tensor=2), folder, tmp_path / "shards")
    weights = ShardedWeights(tmp_path / "shards", HuggingFaceFolder(folder).model, (), {})
    for name, tensor in tensors_of(folder).items():
        part = (slice(5, 13), slice(20, 31))[: tensor.dim()]
        assert torch.equal(weights.read(name, tuple(tensor.shape), part), tensor[part]), name
        blocks = [*weights.row_blocks(name)]
        assert max(block.numel() for block in blocks) <= 7 * 48
        assert torch.equal(torch.cat(blocks), tensor), name


@pytest.mark.parametrize("layout", DEEPSEEK_LAYOUTS)
def test_deepseeks_shape_an_eighth_as_wide_is_read_from_every_layout(tmp_path: Path, layout: str) -> None:
    """A folder, its import, a training checkpoint of the layout, and an export have equal tensors."""
    write_random(tmp_path / "hf", deepseek_shape(layers=2, narrower=8))
    import_folder(tmp_path / "hf", tmp_path / "imported", gate=False)
    training_run(tmp_path / "imported", tmp_path / "run", precision="bf16", **DEEPSEEK_LAYOUTS[layout])
    export(tmp_path / "run", tmp_path / "out", gate=False)
    assert filecmp.cmp(tmp_path / "hf/model.safetensors", tmp_path / "out/model.safetensors", shallow=False)


@pytest.mark.long
@pytest.mark.parametrize("layout", DEEPSEEK_LAYOUTS)
def test_two_layers_of_deepseeks_7b_are_read_from_every_layout(layout: str) -> None:
    """Only the weights, 2.5 GB: with masters and moments, no layout of this shape fits into 20 GB."""
    with tempfile.TemporaryDirectory() as name:
        root, model = Path(name), deepseek_shape(layers=2)
        write_random(root / "hf", model)
        import_folder(root / "hf", root / "imported", gate=False)
        shape = {f"model__{key}": value for key, value in model.model_dump().items()}
        run = run_config(precision="bf16", **shape, **DEEPSEEK_LAYOUTS[layout])
        iteration = root / "iter_0000001"
        run_ranks(run.parallel.model_size, save_as_megatron, run, root / "imported", iteration, {}, False)
        convert(iteration, root / "out", "hf", root / "hf", gate=False)
        assert filecmp.cmp(root / "hf/model.safetensors", root / "out/model.safetensors", shallow=False)
