"""Hugging Face folders that are refused with one error, without writing anything."""

from __future__ import annotations

import json
import re
import resource
import shlex
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from megatron_dsmath.checkpoint.from_huggingface import HuggingFaceFolder, import_folder
from megatron_dsmath.errors import ConversionError, DsmathError, OutputError, TokenizerError
from tests.checkpoint.llama import (
    edit_config,
    edit_tensors,
    same_bits,
    tensors_of,
    write_llama_with_tokenizer,
)

QUERY = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def parts(in_parts: Path, tmp_path: Path) -> Path:
    """A copy in several files with an index, to damage."""
    return Path(shutil.copytree(in_parts, tmp_path / "parts"))


def without(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


def replaced(name: str, tensor: torch.Tensor) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: tensors | {name: tensor}


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (without(QUERY), ["1 tensors are missing", QUERY]),
        (replaced("model.layers.3.mlp.up_proj.weight", torch.ones(2)), ["layers.3.mlp.up_proj", "do not belong"]),
        (replaced("model.layers.0.self_attn.q_proj.bias", torch.ones(48)), ["q_proj.bias", "without biases"]),
        (replaced(QUERY, torch.ones(40, 48)), [QUERY, "[40, 48]", "[48, 48]"]),
        (replaced(QUERY, torch.ones(48, 48, dtype=torch.int8)), [QUERY, "I8", "F32, BF16, F16"]),
        (replaced(QUERY, torch.full((48, 48), float("nan"))), [QUERY, "NaN", "2,304 of 2,304"]),
        (replaced("lm_head.weight", torch.full((97, 48), float("inf"))), ["lm_head.weight", "infinity"]),
    ],
)
def test_the_error_names_the_tensor_that_does_not_fit(
    folder: Path, tmp_path: Path, spoil: Callable[..., dict[str, torch.Tensor]], words: list[str]
) -> None:
    edit_tensors(folder, spoil)
    refused(folder, tmp_path, *words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"architectures": ["MistralForCausalLM"]}, ["architectures", "MistralForCausalLM"]),
        ({"model_type": "qwen2"}, ["model_type", "qwen2"]),
        ({"hidden_act": "gelu"}, ["hidden_act", "gelu"]),
        ({"attention_bias": True}, ["attention_bias"]),
        ({"mlp_bias": True}, ["mlp_bias"]),
        ({"tie_word_embeddings": True}, ["tie_word_embeddings"]),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, ["rope_scaling", "'linear'"]),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5}}, ["rope_parameters", "'llama3'"]),
        ({"auto_map": {"AutoModel": "modeling.Model"}}, ["auto_map"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config"]),
        ({"head_dim": 16}, ["head_dim", "16"]),
        ({"num_attention_heads": 7}, ["num_attention_heads", "7"]),
        ({"num_key_value_heads": 0}, ["num_key_value_heads", "0"]),
        ({"num_key_value_heads": 4}, ["num_key_value_heads", "4"]),
        ({"hidden_size": None}, ["hidden_size"]),
        ({"num_hidden_layers": "3"}, ["num_hidden_layers", "3"]),
        ({"vocab_size": 0}, ["vocab_size", "0"]),
        ({"rope_theta": "1e4", "rope_parameters": None}, ["rope_theta", "1e4"]),
        ({"num_hidden_layers": 4}, ["9 tensors are missing"]),
        ({"num_hidden_layers": 10**15}, ["tensors are missing", "30 tensors"]),
        ({"num_hidden_layers": 2}, ["9 tensors do not belong"]),
    ],
)
def test_an_unsupported_configuration_is_refused_with_its_key(
    folder: Path, tmp_path: Path, changes: dict[str, Any], words: list[str]
) -> None:
    edit_config(folder, **changes)
    refused(folder, tmp_path, *words)


@pytest.mark.parametrize("text", ["", "{", "[]", "[" * 100_000])
def test_a_config_that_is_not_a_json_object_is_refused(folder: Path, tmp_path: Path, text: str) -> None:
    (folder / "config.json").write_text(text)
    refused(folder, tmp_path, "config.json", "JSON")


def test_the_error_names_the_truncated_file(folder: Path, tmp_path: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    refused(folder, tmp_path, "model.safetensors", "cannot be read")


@pytest.mark.parametrize(
    "content", [b"", struct.pack("<Q", 1 << 60), struct.pack("<Q", 2) + b"{]", b"\x80\x04not safetensors at all"]
)
def test_a_hostile_header_is_refused(folder: Path, tmp_path: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    refused(folder, tmp_path, "model.safetensors", "cannot be read")


def test_pickles_are_refused_with_a_fix(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    refused(folder, tmp_path, "pytorch_model.bin", "save_pretrained")


@pytest.mark.long
def test_the_fix_for_pickles_is_a_command_that_works(folder: Path, tmp_path: Path) -> None:
    """In several files with an index, as large pickled models are published."""
    weights = tensors_of(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    files = {"pytorch_model-00001-of-00002.bin": names[:9], "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, part in files.items():
        torch.save({name: weights[name] for name in part}, folder / file)
    index = {"metadata": {}, "weight_map": {name: file for file, part in files.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    with pytest.raises(ConversionError) as caught:
        import_folder(folder, tmp_path / "checkpoint", gate=False)
    command = shlex.split((caught.value.fix or "").split("you trust them: ")[1])
    subprocess.run([sys.executable, *command[1:]], check=True)
    import_folder(folder, tmp_path / "checkpoint", gate=False)
    assert same_bits(tensors_of(tmp_path / "checkpoint" / "weights"), weights)


def test_a_folder_without_weights_is_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    refused(folder, tmp_path, "no weights")


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", tmp_path, "nowhere", "nothing at this path")


def edit_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize("name", ["../other.safetensors", "..", "sub/model.safetensors", "link.safetensors"])
def test_an_index_with_a_file_outside_the_folder_is_refused(parts: Path, tmp_path: Path, name: str) -> None:
    (parts / "link.safetensors").symlink_to(shutil.copy(next(parts.glob("*.safetensors")), tmp_path))
    edit_index(parts, lambda names: names | {QUERY: name})
    refused(parts, tmp_path, "outside", name)


def test_weights_behind_a_link_are_refused(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(tmp_path / "elsewhere.safetensors")
    (folder / "model.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    refused(folder, tmp_path, "outside", "--local-dir")


def test_a_tokenizer_behind_a_link_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{}")
    (folder / "tokenizer_config.json").symlink_to(tmp_path / "secret")
    refused(folder, tmp_path, "outside", "tokenizer_config.json")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda names: names | {QUERY: "model-00009-of-00004.safetensors"}, ["model-00009", "missing"]),
        (lambda names: names | {QUERY: names["lm_head.weight"]}, ["disagree", QUERY]),
        (lambda names: names | {"model.extra": names[QUERY]}, ["disagree", "model.extra"]),
        (lambda names: {key: file for key, file in names.items() if key != QUERY}, ["disagree", QUERY]),
        (lambda names: [*names], ["weight_map", "list"]),
        (lambda names: names | {QUERY: 3}, ["weight_map"]),
    ],
)
def test_an_index_that_differs_from_its_files_is_refused(
    parts: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], words: list[str]
) -> None:
    edit_index(parts, change)
    refused(parts, tmp_path, *words)


def test_a_tokenizer_that_does_not_load_is_refused(tmp_path: Path) -> None:
    folder = write_llama_with_tokenizer(tmp_path / "hf")
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model"')
    refused(folder, tmp_path, "tokenizer.json", kind=TokenizerError)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path: Path) -> None:
    folder = write_llama_with_tokenizer(tmp_path / "hf", vocab_size=200)
    refused(folder, tmp_path, "tokenizer.json", "200")


def test_an_output_that_is_not_empty_is_not_changed(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "checkpoint"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        import_folder(whole, out, gate=False)
    assert (out / "notes.txt").read_text() == "mine"


def test_an_output_that_cannot_be_written_is_refused(whole: Path) -> None:
    with pytest.raises(OutputError, match="/proc"):
        import_folder(whole, Path("/proc/checkpoint"), gate=False)


@pytest.fixture
def small_files() -> Iterator[None]:
    """Files are limited to 64 KiB, so that the system fails in the middle of a write."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_write_that_fails_leaves_nothing(whole: Path, tmp_path: Path, small_files: None) -> None:
    with pytest.raises(OutputError, match="File too large"):
        import_folder(whole, tmp_path / "checkpoint", gate=False)
    assert list(tmp_path.iterdir()) == []


def test_too_little_space_is_refused_before_anything_is_written(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))  # type: ignore[attr-defined]
    parameters = HuggingFaceFolder(whole).model.parameters
    with pytest.raises(OutputError, match=f"{4 * parameters:,} bytes free"):
        import_folder(whole, tmp_path / "checkpoint", gate=False)
    assert list(tmp_path.iterdir()) == []


def refused(folder: Path, tmp_path: Path, *words: str, kind: type[DsmathError] = ConversionError) -> None:
    """One error with all of `words`, exit code 78, and nothing written."""
    before = sorted(tmp_path.iterdir())
    with pytest.raises(kind) as caught:
        import_folder(folder, tmp_path / "checkpoint", gate=False)
    text = caught.value.text()
    assert [word for word in words if word not in text] == [], text
    assert re.match(r"error\[\w+\]: ", text)
    assert caught.value.exit_code == 78
    assert sorted(tmp_path.iterdir()) == before
