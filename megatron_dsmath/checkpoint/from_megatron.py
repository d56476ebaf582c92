"""A checkpoint of Megatron-LM as weights to read: `torch_dist`, GPT of LLaMA's shape, any layout."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from megatron_dsmath.checkpoint import checkpoint_weights, logit_gate
from megatron_dsmath.checkpoint.checkpoint_weights import ShardedWeights, described
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
    """Open the weights of an `iter_XXXXXXX` directory, or of the iteration that its parent's tracker names.

    `model_config` is a Hugging Face config.json (or its folder, whose tokenizer files come along), since Megatron-LM
    keeps the shape in a pickle. `vocabulary_size`, which must be that configuration's, allows rows of padding beyond
    it to be cut off. Raises CheckpointError and ConversionError.
    """
    config = config_file(model_config)
    content = read_json(config)
    model = model_from(content, config)
    if vocabulary_size not in (None, model.vocabulary_size):
        raise ConversionError(
            "the vocabulary to keep is not the configuration's",
            where=f"{config}: vocab_size",
            found=model.vocabulary_size,
            expected=f"{vocabulary_size}, as --vocabulary-size says",
            fix="make both say how many rows the model has without padding",
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
    """Make a checkpoint (`dsmath`) or a Hugging Face folder (`hf`) of a Megatron-LM checkpoint; see `open_megatron`.

    `gate`: compare the logits of the fused weights with those that transformers computes from what is written. Raises
    also TokenizerError, and OutputError when `out` is not empty or cannot be written.
    """
    weights = open_megatron(path, model_config, vocabulary_size)
    ours: list[object] = [path, "--model-config", model_config]
    if vocabulary_size is not None:
        ours += ["--vocabulary-size", vocabulary_size]
    if target == "hf":
        return write_huggingface(weights, described(weights), out, ours if gate else None)

    def compare(checkpoint: Path) -> LogitVerdict:
        theirs = checkpoint / checkpoint_weights.FOLDER, config_file(model_config)
        return logit_gate.compare(weights, ours, *theirs) if gate else logit_gate.NOT_ASKED

    manifest, verdict = checkpoint_weights.write_weights_checkpoint(weights, out, compare)
    return Imported(out, manifest.model.parameters, manifest.precision, (), verdict)


def config_file(model_config: Path) -> Path:
    """The config.json that is meant: itself, or the one in a folder."""
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
            expected="an iter_XXXXXXX directory, or the directory that holds them",
            fix="save it with --ckpt-format torch_dist (older formats are pickles of programs)",
        )
    number = tracker.read_text(encoding="utf-8", errors="replace").strip()
    if not re.fullmatch(r"\d{1,12}|release", number):
        raise CheckpointError(
            "the tracker names no iteration",
            where=tracker,
            found=repr(number[:40]),
            expected="a number",
            fix="name the iter_XXXXXXX directory itself",
        )
    return path / ("release" if number == "release" else f"iter_{int(number):07}")
