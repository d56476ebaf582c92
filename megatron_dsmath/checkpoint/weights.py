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
