from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.checkpoint import store
from megatron_dsmath.checkpoint.from_huggingface import HuggingFaceFolder
from megatron_dsmath.checkpoint.from_megatron import TRACKER, convert, open_megatron
from megatron_dsmath.checkpoint.weight_reader import tensor_shapes
from megatron_dsmath.errors import CheckpointError, ConversionError
from tests.checkpoint.llama import edit_config, same_bits, tensors_of, write_llama
from tests.checkpoint.ranks import save_as_megatron
from tests.support.ranks import run_ranks
from tests.support.runs import run_config

# Names that Megatron-LM writes with --transformer-impl transformer_engine, its default.
TRANSFORMER_ENGINE = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}
NEMO = {"embedding.": "module.embedding.", "decoder.": "module.decoder.", "output_layer.": "module.output_layer."}

SAVES: dict[str, tuple[int, dict[str, Any], dict[str, str], bool]] = {
    "local names": (1, {}, {}, False),
    "TransformerEngine's names, tensor 2": (2, {"parallel__tensor": 2}, TRANSFORMER_ENGINE, False),
    "pipeline 2": (2, {"parallel__pipeline": 2}, TRANSFORMER_ENGINE, False),
    "an entry per layer": (1, {}, TRANSFORMER_ENGINE, True),
    "a name before each key": (1, {}, NEMO, False),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("hf") / "llama", vocab_size=96, num_hidden_layers=4)


def save(folder: Path, out: Path, name: str = "local names") -> Path:
    size, overrides, rename, per_layer = SAVES[name]
    run_ranks(size, save_as_megatron, run_config(**overrides), folder, out, rename, per_layer)
    return out


@pytest.mark.parametrize("name", SAVES)
def test_weights_equal_those_that_megatron_saved(folder: Path, tmp_path: Path, name: str) -> None:
    weights = open_megatron(save(folder, tmp_path / "iter_0000040", name), folder)
    read = {name: weights.read_whole(name) for name in tensor_shapes(weights.model)}
    assert same_bits(read, tensors_of(folder))


@pytest.fixture(scope="module")
def saved(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("megatron")
    save(folder, root / "iter_0000040")
    (root / TRACKER).write_text("40\n")
    return root


def test_the_iteration_of_the_tracker_becomes_a_huggingface_folder(folder: Path, saved: Path, tmp_path: Path) -> None:
    convert(saved, tmp_path / "out", "hf", folder / "config.json", gate=False)
    assert same_bits(tensors_of(tmp_path / "out"), tensors_of(folder))
    assert HuggingFaceFolder(tmp_path / "out").model == HuggingFaceFolder(folder).model


def test_it_is_converted_to_a_checkpoint(folder: Path, saved: Path, tmp_path: Path) -> None:
    convert(saved, tmp_path / "out", "dsmath", folder, gate=False)
    assert store.verify(tmp_path / "out").kind == "weights"
    assert same_bits(tensors_of(tmp_path / "out/weights"), tensors_of(folder))


@pytest.fixture
def unpadded(folder: Path, tmp_path: Path) -> Path:
    """The configuration of a model with 91 tokens, which Megatron-LM padded to 96."""
    shutil.copytree(folder, tmp_path / "unpadded")
    edit_config(tmp_path / "unpadded", vocab_size=91)
    return tmp_path / "unpadded"


def test_padding_of_the_vocabulary_is_removed_with_the_flag(folder: Path, saved: Path, unpadded: Path) -> None:
    weights = open_megatron(saved, unpadded, vocabulary_size=91)
    for name in ("lm_head.weight", "model.embed_tokens.weight"):
        assert same_bits({name: weights.read_whole(name)}, {name: tensors_of(folder)[name][:91]})


def test_padding_is_refused_without_the_flag(saved: Path, unpadded: Path) -> None:
    with pytest.raises(ConversionError, match=r"embedding.*\n.*\[96, 48\]\n.*\[91, 48\]"):
        open_megatron(saved, unpadded)


def test_another_vocabulary_size_than_in_the_configuration_is_refused(saved: Path, folder: Path) -> None:
    with pytest.raises(ConversionError, match="vocab_size"):
        open_megatron(saved, folder, vocabulary_size=91)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 3}, r"decoder\.layers\.3"),
        ({"num_hidden_layers": 5}, r"decoder\.layers\.4"),
        ({"intermediate_size": 80}, r"linear_fc1.*\n.*\[176, 48\]"),
    ],
)
def test_a_configuration_of_another_model_is_refused(
    saved: Path, unpadded: Path, changes: dict[str, int], words: str
) -> None:
    edit_config(unpadded, vocab_size=96, **changes)
    with pytest.raises(ConversionError, match=words):
        open_megatron(saved, unpadded)


def test_a_tensor_of_another_architecture_is_refused(folder: Path, tmp_path: Path) -> None:
    run = run_config()
    renamed = {"final_layernorm.weight": "final_layernorm.bias"}
    run_ranks(1, save_as_megatron, run, folder, tmp_path / "iter_0000040", renamed, False)
    with pytest.raises(ConversionError, match=r"final_layernorm\.bias"):
        open_megatron(tmp_path / "iter_0000040", folder)


@pytest.mark.parametrize("tracker", ["", "forty", "../../elsewhere", "4" * 40])
def test_a_tracker_without_a_number_is_refused(folder: Path, tmp_path: Path, tracker: str) -> None:
    (tmp_path / TRACKER).write_text(tracker)
    with pytest.raises(CheckpointError, match=TRACKER):
        open_megatron(tmp_path, folder)


def test_a_tracker_that_points_nowhere_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / TRACKER).write_text("7")
    with pytest.raises(CheckpointError, match="iter_0000007"):
        open_megatron(tmp_path, folder)


def test_a_folder_of_another_format_is_refused_with_a_fix(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mp_rank_00").mkdir()
    with pytest.raises(CheckpointError, match="--ckpt-format torch_dist"):
        open_megatron(tmp_path, folder)
