"""Read and convert checkpoints of Megatron-LM: `torch_dist` format, LLaMA architecture, any layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from megatron_dsmath.checkpoint import checkpoint_weights, logit_gate
from megatron_dsmath.checkpoint.checkpoint_weights import ShardedWeights, describe_weights
from megatron_dsmath.checkpoint.from_huggingface import Imported
from megatron_dsmath.checkpoint.huggingface_config import CONFIG, model_from
from megatron_dsmath.checkpoint.manifest import LogitVerdict
from megatron_dsmath.checkpoint.safetensors_files import read_json
from megatron_dsmath.checkpoint.to_huggingface import Exported, write_huggingface
from megatron_dsmath.checkpoint.tokenizer_files import special_token_ids, tokenizer_files
from megatron_dsmath.errors import CheckpointError, ConversionError
from megatron_dsmath.parallel.shard_reader import METADATA

TRACKER = "latest_checkpointed_iteration.txt"


def open_megatron(path: Path, model_config: Path, vocabulary_size: int | None = None) -> ShardedWeights:
    """Open the weights of an `iter_XXXXXXX` directory, or of the iteration in its parent's tracker file.

    `model_config` is a Hugging Face config.json, or a folder with one and tokenizer files; Megatron-LM stores the shape
    only in a pickle. If `vocabulary_size` is given, it must be that of the configuration, and padding rows beyond it
    are left out. Raises CheckpointError and ConversionError.
    """
    config = _config_file(model_config)
    content = read_json(config)
    model = model_from(content, config)
    if vocabulary_size not in (None, model.vocabulary_size):
        raise ConversionError(
            "the vocabulary size differs from the configuration",
            where=f"{config}: vocab_size",
            found=model.vocabulary_size,
            expected=f"{vocabulary_size}, from --vocabulary-size",
            fix="set both to the number of rows without padding",
        )
    files = tokenizer_files(config.parent)
    ids = special_token_ids(files, content)
    return ShardedWeights(_iteration(path), model, files, ids, padded_vocabulary=vocabulary_size is not None)


def convert(
    path: Path,
    out: Path,
    target: Literal["dsmath", "hf"],
    model_config: Path,
    vocabulary_size: int | None = None,
    *,
    gate: bool = True,
) -> Imported | Exported:
    """Convert a Megatron-LM checkpoint to a checkpoint (`dsmath`) or a Hugging Face folder (`hf`).

    See `open_megatron` for the arguments. `gate`: compare the logits of the input with those that transformers computes
    from the output. Also raises TokenizerError, and OutputError if `out` is not empty or cannot be written.
    """
    weights = open_megatron(path, model_config, vocabulary_size)
    own_arguments: list[object] = [path, "--model-config", model_config]
    if vocabulary_size is not None:
        own_arguments += ["--vocabulary-size", vocabulary_size]
    if target == "hf":
        return write_huggingface(weights, describe_weights(weights), out, own_arguments if gate else None)

    def compare(checkpoint: Path) -> LogitVerdict:
        if not gate:
            return logit_gate.NOT_ASKED
        folder = checkpoint / checkpoint_weights.WEIGHTS_FOLDER
        return logit_gate.compare(weights, own_arguments, folder, _config_file(model_config))

    return Imported(out, checkpoint_weights.write_weights_checkpoint(weights, out, compare))


def _config_file(model_config: Path) -> Path:
    return model_config / CONFIG if model_config.is_dir() else model_config


def _iteration(path: Path) -> Path:
    if (path / METADATA).is_file():
        return path
    tracker = path / TRACKER
    if not tracker.is_file():
        raise CheckpointError(
            "this is not a torch_dist checkpoint of Megatron-LM",
            where=path,
            found=f"neither {METADATA} nor {TRACKER}" if path.is_dir() else "no such directory",
            expected="an iter_XXXXXXX directory, or its parent",
            fix="save it with --ckpt-format torch_dist (older formats are pickles that can run code)",
        )
    number = tracker.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"\d{1,12}|release", number):
        raise CheckpointError(
            "the tracker file does not contain an iteration",
            where=tracker,
            found=repr(number[:40]),
            expected="a number",
            fix="give the iter_XXXXXXX directory itself",
        )
    return path / ("release" if number == "release" else f"iter_{int(number):07}")
