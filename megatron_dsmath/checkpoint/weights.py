"""Weights by path: a Hugging Face folder, a checkpoint, or the newest checkpoint of a run."""

from __future__ import annotations

from pathlib import Path

from megatron_dsmath.checkpoint import checkpoint_weights, store
from megatron_dsmath.checkpoint.checkpoint_weights import WeightsCheckpoint, files_of
from megatron_dsmath.checkpoint.from_huggingface import HuggingFaceFolder
from megatron_dsmath.checkpoint.huggingface_config import CONFIG
from megatron_dsmath.checkpoint.manifest import Manifest
from megatron_dsmath.checkpoint.tokenizer_files import special_token_ids
from megatron_dsmath.checkpoint.weight_reader import WeightReader
from megatron_dsmath.config.sections import ModelConfig
from megatron_dsmath.errors import CheckpointError

# What must agree for weights to mean the same; lengths, starting values and kernels may be chosen anew.
_DECIDES_THE_MODEL = (
    "layers",
    "hidden_size",
    "ffn_hidden_size",
    "attention_heads",
    "key_value_heads",
    "vocabulary_size",
    "norm_epsilon",
    "rope_theta",
)


def open_weights(path: Path, rank: int = 0, size: int = 1) -> WeightReader:
    """Open the weights that `path` names.

    A checkpoint is compared with its manifest first; ranks 0 to `size` - 1 share that work. Raises CheckpointError
    and ConversionError for what is not whole or not a model of ours.
    """
    if (path / CONFIG).exists():
        return HuggingFaceFolder(path)
    checkpoint = store.locate(path)
    return open_checkpoint(checkpoint, store.verify(checkpoint, rank, size))


def open_checkpoint(checkpoint: Path, manifest: Manifest) -> WeightReader:
    """Open the weights of a checkpoint that was compared with its manifest. Raises ConversionError, CheckpointError."""
    if manifest.kind == "weights":
        return WeightsCheckpoint(checkpoint, manifest)
    files = files_of(checkpoint, manifest)
    folder = checkpoint / checkpoint_weights.FOLDER
    return checkpoint_weights.ShardedWeights(folder, manifest.model, files, special_token_ids(files))


def check_same_model(found: ModelConfig, run_model: ModelConfig, where: Path | None = None) -> None:
    """Raise CheckpointError, naming every key that differs, unless weights of `found` fit the run's model.

    `where`: the checkpoint that the error names.
    """
    differing = [key for key in _DECIDES_THE_MODEL if getattr(found, key) != getattr(run_model, key)]
    if differing:
        raise CheckpointError(
            "the weights are of another model than the run's",
            where=where or ", ".join(f"model.{key}" for key in differing),
            found=", ".join(f"{key} {getattr(found, key)}" for key in differing),
            expected=", ".join(f"{key} {getattr(run_model, key)}" for key in differing),
            fix="set these keys of the run file to what was found, or name other weights",
        )
