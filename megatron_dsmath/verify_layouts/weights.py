"""The weights that every layout starts from: drawn once, written as one Hugging Face folder."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch

from megatron_dsmath.checkpoint.huggingface_config import CONFIG, config_from
from megatron_dsmath.checkpoint.safetensors_writer import write_safetensors
from megatron_dsmath.checkpoint.weight_reader import tensor_shapes
from megatron_dsmath.config.model import ModelConfig

# Queries and keys of this deviation give attention something to choose between, which 0.006 at a small width would not:
# positions, documents and the order of heads then weigh in the loss.
STANDARD_DEVIATION = 0.15


def write_weights(model: ModelConfig, folder: Path) -> None:
    """Draw every tensor of `model`, norms too, each from a generator of its own, and write them into a new folder."""
    shapes = tensor_shapes(model)

    def drawn(name: str) -> torch.Tensor:
        digest = hashlib.sha256(name.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        tensor = torch.empty(shapes[name])
        if tensor.ndim == 1:
            return tensor.uniform_(0.5, 1.5, generator=generator)
        return tensor.normal_(0.0, STANDARD_DEVIATION, generator=generator)

    folder.mkdir()
    write_safetensors(folder, {name: (shape, torch.float32) for name, shape in shapes.items()}, drawn)
    (folder / CONFIG).write_text(json.dumps(config_from(model, "fp32", {})), encoding="utf-8")
