"""Small LLaMAs in Hugging Face folders, written by transformers, with distinct sizes to detect exchanged dimensions."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from megatron_dsmath.checkpoint.huggingface_config import config_from
from megatron_dsmath.checkpoint.safetensors_files import write_safetensors
from megatron_dsmath.checkpoint.weight_reader import tensor_shapes
from megatron_dsmath.config.sections import ModelConfig
from tests.support.small_tokenizer import write_small_tokenizer

SHAPE = {
    "vocab_size": 97,
    "hidden_size": 48,
    "intermediate_size": 88,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 5000.0,
    "tie_word_embeddings": False,
}


def write_llama(folder: Path, *, dtype: torch.dtype = torch.float32, shard: str = "5GB", **shape: Any) -> Path:
    """A random LlamaForCausalLM as transformers saves it; every weight, norms too, is random."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(5)
    model = LlamaForCausalLM(LlamaConfig(**{**SHAPE, **shape}))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.copy_(torch.rand_like(weight) + 0.5 if "norm" in name else torch.randn_like(weight) * 0.1)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return folder


def write_llama_with_tokenizer(folder: Path, **shape: Any) -> Path:
    """The same with a tokenizer, and a vocabulary that holds it and some padding, as DeepSeek's does."""
    write_llama(folder, **{"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 1, **shape})
    return write_small_tokenizer(folder)


def write_moved_llama(folder: Path, seed: int, **shape: Any) -> Path:
    """The same with four layers, and noise of `seed` added to all weights."""
    write_llama_with_tokenizer(folder, num_hidden_layers=4, **shape)
    generator = torch.Generator().manual_seed(seed)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=generator)
        return (tensor.float() + noise * 0.05).to(tensor.dtype)

    edit_tensors(folder, lambda tensors: {name: moved(tensor) for name, tensor in tensors.items()})
    return folder


def deepseek_shape(layers: int, narrower: int = 1) -> ModelConfig:
    """DeepSeekMath 7B (config.json of deepseek-math-7b-base) of fewer layers, every width divided by `narrower`."""
    return ModelConfig(
        layers=layers,
        hidden_size=4096 // narrower,
        ffn_hidden_size=11008 // narrower,
        attention_heads=32 // narrower,
        key_value_heads=32 // narrower,
        vocabulary_size=102_400 // narrower,
        max_position_embeddings=4096,
        norm_epsilon=1e-6,
        rope_theta=10000.0,
        initial_std=0.006,
        initial_weights=None,
        kernels="torch",
    )


def write_random(folder: Path, model: ModelConfig, seed: int = 3) -> int:
    """Random bf16 weights, norms too, one tensor in memory at a time; returns their bytes."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str) -> torch.Tensor:
        weights = torch.empty(tensor_shapes(model)[name])
        if weights.dim() == 1:
            return weights.uniform_(0.5, 1.5, generator=generator).bfloat16()
        return weights.normal_(0.0, model.initial_std, generator=generator).bfloat16()

    write_safetensors(folder, {name: (shape, torch.bfloat16) for name, shape in tensor_shapes(model).items()}, draw)
    (folder / "config.json").write_text(json.dumps(config_from(model, "bf16", {})))
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def edit_tensors(folder: Path, function: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    from safetensors.torch import save_file

    save_file(function(tensors_of(folder)), folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    """Change keys of the folder's config.json."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder's safetensors files, read by the library itself."""
    from safetensors.torch import load_file

    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


def same_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    """Whether two sets of tensors agree in names, types, shapes and every bit."""
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == theirs[name].dtype
        and ours[name].shape == theirs[name].shape
        and torch.equal(ours[name].view(torch.uint8), theirs[name].view(torch.uint8))
        for name in theirs
    )
