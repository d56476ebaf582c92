"""Open weights by path: a Hugging Face folder, a checkpoint, or the newest checkpoint of a run."""

from __future__ import annotations

import hashlib
from pathlib import Path

from megatron_dsmath.checkpoint import checkpoint_weights, store
from megatron_dsmath.checkpoint.checkpoint_weights import WeightsCheckpoint, checkpoint_tokenizer_files
from megatron_dsmath.checkpoint.from_huggingface import HuggingFaceFolder
from megatron_dsmath.checkpoint.huggingface_config import CONFIG
from megatron_dsmath.checkpoint.manifest import MANIFEST, Manifest
from megatron_dsmath.checkpoint.tokenizer_files import special_token_ids
from megatron_dsmath.checkpoint.weight_reader import WeightReader

_BLOCK_BYTES = 1 << 24


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


def weights_sha256(path: Path) -> str:
    """The sha256 of a checkpoint's manifest, or of the configuration and the weights of a Hugging Face folder."""
    if not (path / CONFIG).is_file():
        return hashlib.sha256((store.locate(path) / MANIFEST).read_bytes()).hexdigest()
    digest = hashlib.sha256()
    for file in (path / CONFIG, *sorted(path.glob("*.safetensors"))):
        digest.update(f"{file.name} {file.stat().st_size} ".encode())
        with file.open("rb") as content:
            while block := content.read(_BLOCK_BYTES):
                digest.update(block)
    return digest.hexdigest()
