"""Convert config.json of a `LlamaForCausalLM` to our model configuration and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from pydantic import ValidationError

from megatron_dsmath.config.sections import ModelConfig
from megatron_dsmath.errors import ConversionError

CONFIG = "config.json"

# Our key, Hugging Face's key, and the default of transformers' LlamaConfig (None: the key is required).
_SIZES: tuple[tuple[str, str, int | float | None], ...] = (
    ("layers", "num_hidden_layers", None),
    ("hidden_size", "hidden_size", None),
    ("ffn_hidden_size", "intermediate_size", None),
    ("attention_heads", "num_attention_heads", None),
    ("vocabulary_size", "vocab_size", None),
    ("max_position_embeddings", "max_position_embeddings", 2048),
    ("norm_epsilon", "rms_norm_eps", 1e-6),
    ("initial_std", "initializer_range", 0.02),
)
# Keys of features that this decoder does not support, with the value they have without the feature.
_MUST_BE: tuple[tuple[str, Any], ...] = (
    ("model_type", "llama"),
    ("hidden_act", "silu"),
    ("attention_bias", False),
    ("mlp_bias", False),
    ("tie_word_embeddings", False),
    ("quantization_config", None),
    ("auto_map", None),  # code in the folder
)
_TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


def model_from(config: Mapping[str, Any], path: Path) -> ModelConfig:
    """The model configuration for the content of the config.json at `path`.

    Raises ConversionError with the key of an unsupported feature, or of a missing or invalid value.
    """
    if config.get("architectures", ["LlamaForCausalLM"]) != ["LlamaForCausalLM"]:
        _refuse(path, "architectures", config["architectures"], '["LlamaForCausalLM"]')
    for key, value in _MUST_BE:
        if config.get(key, value) != value:
            _refuse(path, key, config[key], value)
    values = {key: config.get(hf_key, default) for key, hf_key, default in _SIZES}
    groups = config.get("num_key_value_heads")
    values["key_value_heads"] = values["attention_heads"] if groups is None else groups
    values["rope_theta"] = _rope_theta(config, path)
    try:
        model = ModelConfig(**values, initial_weights=None, kernels="torch")
    except ValidationError as error:
        first = error.errors()[0]
        names = {key: hf_key for key, hf_key, _ in _SIZES} | {"key_value_heads": "num_key_value_heads"}
        key = str(first["loc"][0])
        _refuse(path, names.get(key, key), values.get(key), first["msg"])
    _check_heads(model, config, path)
    return model


def config_from(model: ModelConfig, precision: str, special_token_ids: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of a model, with the keys of transformers 4, which transformers 5 and vLLM read too."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": special_token_ids.get("bos_token_id"),
        "eos_token_id": special_token_ids.get("eos_token_id"),
        "pad_token_id": special_token_ids.get("pad_token_id"),
        "head_dim": model.head_size,
        "hidden_act": "silu",
        "hidden_size": model.hidden_size,
        "initializer_range": model.initial_std,
        "intermediate_size": model.ffn_hidden_size,
        "max_position_embeddings": model.max_position_embeddings,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": model.attention_heads,
        "num_hidden_layers": model.layers,
        "num_key_value_heads": model.key_value_heads,
        "pretraining_tp": 1,
        "rms_norm_eps": model.norm_epsilon,
        "rope_scaling": None,
        "rope_theta": model.rope_theta,
        "tie_word_embeddings": False,
        "torch_dtype": _TORCH_NAMES.get(precision, "float32"),
        "use_cache": True,
        "vocab_size": model.vocabulary_size,
    }


def _rope_theta(config: Mapping[str, Any], path: Path) -> float:
    """The base of the rotary frequencies, under the keys of transformers 4 or 5 (`rope_parameters`)."""
    rope: dict[str, Any] = {}
    for key in ("rope_scaling", "rope_parameters"):
        section = config.get(key) or {}
        if not isinstance(section, dict):
            _refuse(path, key, section, "null")
        kind = section.get("rope_type", section.get("type", "default"))
        if kind != "default":
            _refuse(path, key, f"scaled positions: {kind!r}", "null: unscaled positions")
        if section.get("partial_rotary_factor", 1.0) != 1.0:
            _refuse(path, f"{key}.partial_rotary_factor", section["partial_rotary_factor"], 1.0)
        rope |= section
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    if isinstance(theta, bool) or not isinstance(theta, int | float):
        _refuse(path, "rope_theta", theta, "a number")
    return float(theta)


def _check_heads(model: ModelConfig, config: Mapping[str, Any], path: Path) -> None:
    hidden, heads, groups = model.hidden_size, model.attention_heads, model.key_value_heads
    if hidden % heads or model.head_size % 2:
        _refuse(path, "num_attention_heads", heads, f"a divisor of hidden_size ({hidden}) with an even quotient")
    if heads % groups:
        _refuse(path, "num_key_value_heads", groups, f"a divisor of num_attention_heads ({heads})")
    if config.get("head_dim") not in (None, model.head_size):
        _refuse(path, "head_dim", config["head_dim"], f"hidden_size / num_attention_heads = {model.head_size}")


def _refuse(path: Path, key: str, found: object, expected: object) -> NoReturn:
    raise ConversionError(
        "the model of this folder is not supported",
        where=f"{path}: {key}",
        found=found,
        expected="null, or no such key" if expected is None else expected,
        fix="use a plain LlamaForCausalLM; if config.json does not match the weights, correct this key",
    )
