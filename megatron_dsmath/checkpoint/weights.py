"""Open weights by path: a Hugging Face folder, a checkpoint, or the newest checkpoint of a run."""

from __future__ import annotations

from pathlib import Path

from megatron_dsmath.checkpoint import checkpoint_weights, store
from megatron_dsmath.checkpoint.checkpoint_weights import WeightsCheckpoint, checkpoint_tokenizer_files
from megatron_dsmath.checkpoint.from_huggingface import HuggingFaceFolder
from megatron_dsmath.checkpoint.huggingface_config import CONFIG
from megatron_dsmath.checkpoint.manifest import Manifest
from megatron_dsmath.checkpoint.tokenizer_files import special_token_ids
from megatron_dsmath.checkpoint.weight_reader import WeightReader
from megatron_dsmath.config.sections import ModelConfig
from megatron_dsmath.errors import CheckpointError

# Fields that must agree for weights to fit; lengths, initial values and kernels may differ.
_ARCHITECTURE = (
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
    """Open the weights at `path`.

    A checkpoint is first compared with its manifest, by ranks 0 to `size` - 1 together. Raises CheckpointError and
    ConversionError for weights that are damaged or of an unsupported model.
    """
    if (path / CONFIG).exists():
        return HuggingFaceFolder(path)
    checkpoint = store.locate(path)
    return open_checkpoint(checkpoint, store.verify(checkpoint, rank, size))


def open_checkpoint(checkpoint: Path, manifest: Manifest) -> WeightReader:
    """Open the weights of a verified checkpoint. Raises ConversionError and CheckpointError."""
    if manifest.kind == "weights":
        return WeightsCheckpoint(checkpoint, manifest)
    files = checkpoint_tokenizer_files(checkpoint, manifest)
    folder = checkpoint / checkpoint_weights.SHARDS_FOLDER
    return checkpoint_weights.ShardedWeights(folder, manifest.model, files, special_token_ids(files))


def check_same_model(found: ModelConfig, run_model: ModelConfig, where: Path | None = None) -> None:
    """Raise CheckpointError, with every key that differs, unless weights of the model `found` fit the run's model.

    `where`: the checkpoint to name in the error.
    """
    differing = [key for key in _ARCHITECTURE if getattr(found, key) != getattr(run_model, key)]
    if differing:
        raise CheckpointError(
            "the weights belong to another model than the run's",
            where=where or ", ".join(f"model.{key}" for key in differing),
            found=", ".join(f"{key} {getattr(found, key)}" for key in differing),
            expected=", ".join(f"{key} {getattr(run_model, key)}" for key in differing),
            fix="set these keys of the run file to the values found, or give other weights",
        )
