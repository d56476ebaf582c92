"""A checkpoint as a Hugging Face folder that transformers and vLLM load with no edit."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from megatron_dsmath.checkpoint import store, whole_directory
from megatron_dsmath.checkpoint.huggingface_config import CONFIG, config_from
from megatron_dsmath.checkpoint.manifest import Manifest, read_manifest
from megatron_dsmath.checkpoint.model_card import model_card
from megatron_dsmath.checkpoint.safetensors_writer import size_bytes, write_safetensors
from megatron_dsmath.checkpoint.tokenizer_files import tokenizer_file, write_beside_weights
from megatron_dsmath.checkpoint.weight_reader import DTYPES, WeightReader, require_finite
from megatron_dsmath.checkpoint.weights import open_weights
from megatron_dsmath.checkpoint.weights_checkpoint import precision_of

Precision = Literal["fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Exported:
    """What an export did."""

    folder: Path
    step: int
    parameters: int
    precision: str
    tokenizer: str | None

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.parameters:,} parameters in {self.precision}, of step {self.step:,}"]
        if self.tokenizer is None:
            lines.append("tokenizer: none was with the weights")
        elif self.tokenizer.endswith(".model"):
            lines.append(f"tokenizer: {self.tokenizer}, for sentencepiece itself; transformers may give other ids")
        return "\n".join(lines)


def export(checkpoint: Path, out: Path, precision: Precision | None = None) -> Exported:
    """Make the Hugging Face folder `out` of a checkpoint, or of the newest one of a run; None keeps the precision.

    Raises CheckpointError for a checkpoint that is not whole, and OutputError when `out` is not empty or cannot be
    written. Nothing is left of an export that fails.
    """
    whole_directory.require_absent(out)
    found = store.locate(checkpoint)
    weights = open_weights(found)
    try:
        manifest = read_manifest(found)
        return write_huggingface(weights, manifest, out, precision)
    finally:
        weights.close()


def write_huggingface(
    weights: WeightReader, manifest: Manifest, out: Path, precision: Precision | None = None
) -> Exported:
    """Write `weights` as a Hugging Face folder whose card tells what `manifest` says; as `export`, which see."""
    dtype = None if precision is None else DTYPES[precision]
    tensors = {name: (shape, dtype or weights.dtype(name)) for name, shape in weights.shapes.items()}
    kept = precision or precision_of(weights)
    store.preflight(out.absolute().parent, sum(size_bytes(*tensor) for tensor in tensors.values()))

    def converted(name: str) -> torch.Tensor:
        tensor = weights.read_whole(name).to(tensors[name][1])
        require_finite(weights.path, f"{name} in {kept}", tensor)  # fp16 ends at 65,504
        return tensor

    with whole_directory.whole_directory(out) as folder:
        write_safetensors(folder, tensors, converted)
        write_beside_weights(weights, folder)
        config = config_from(weights.model, kept, weights.special_token_ids)
        _write(folder / CONFIG, json.dumps(config, indent=2) + "\n")
        _write(folder / "README.md", model_card(out.absolute().name, manifest))
    engine = tokenizer_file(weights.tokenizer_files)
    return Exported(out, manifest.step, weights.model.parameters, kept, engine.name if engine else None)


def _write(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")
    whole_directory.sync(path)
