"""Export a checkpoint as a Hugging Face folder that transformers and vLLM load unchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_dsmath.checkpoint import logit_gate, store
from megatron_dsmath.checkpoint.checkpoint_weights import precision_of
from megatron_dsmath.checkpoint.huggingface_config import CONFIG, config_from
from megatron_dsmath.checkpoint.manifest import LogitVerdict, Manifest, read_manifest
from megatron_dsmath.checkpoint.model_card import model_card, read_scores
from megatron_dsmath.checkpoint.safetensors_files import size_bytes, write_safetensors
from megatron_dsmath.checkpoint.tokenizer_files import Chat, tokenizer_file, write_beside_weights
from megatron_dsmath.checkpoint.weight_reader import WeightReader
from megatron_dsmath.checkpoint.weights import open_weights
from megatron_dsmath.files import directories
from megatron_dsmath.files.atomic_files import write_text


@dataclass(frozen=True)
class Exported:
    """The result of an export; its text is printed for the user."""

    folder: Path
    step: int
    parameters: int
    precision: str
    tokenizer: str | None
    logits: LogitVerdict

    def __str__(self) -> str:
        lines = [f"{self.folder}: {self.parameters:,} parameters in {self.precision}, of step {self.step:,}"]
        if self.tokenizer is None:
            lines.append("tokenizer: there is none with the weights")
        elif self.tokenizer.endswith(".model"):
            lines.append(f"tokenizer: {self.tokenizer}, for sentencepiece; transformers may give other ids")
        lines.append(f"logits: {self.logits}")
        return "\n".join(lines)


def export(checkpoint: Path, out: Path, *, gate: bool = True, scores: Path | None = None) -> Exported:
    """Export a checkpoint, or the newest of a run, as the Hugging Face folder `out`.

    `gate`: compare transformers' logits of the folder with the checkpoint's. `scores`: a JSON file with a number per
    benchmark, for the model card. Raises CheckpointError for a damaged checkpoint, ConversionError if logits differ,
    and OutputError if `out` is not empty or cannot be written. A failed export leaves nothing.
    """
    directories.require_absent(out)
    by_benchmark = read_scores(scores) if scores else {}
    found = store.locate(checkpoint)
    weights = open_weights(found)
    try:
        own_arguments = [found] if gate else None
        return write_huggingface(weights, read_manifest(found), out, own_arguments, by_benchmark)
    finally:
        weights.close()


def write_huggingface(
    weights: WeightReader,
    manifest: Manifest,
    out: Path,
    own_arguments: Sequence[object] | None,
    scores: Mapping[str, float] | None = None,
) -> Exported:
    """Write `weights` as a Hugging Face folder with a model card from `manifest`; raises as `export`.

    `own_arguments`: the arguments of `own_logits` for these weights; None compares no logits.
    """
    tensors = {name: (shape, weights.dtype(name)) for name, shape in weights.shapes.items()}
    precision = precision_of(weights)
    store.require_space(out.absolute().parent, sum(size_bytes(*tensor) for tensor in tensors.values()))
    with directories.atomic_directory(out) as folder:
        write_safetensors(folder, tensors, weights.row_blocks)
        write_beside_weights(weights, folder, chat_format(manifest))
        config = config_from(weights.model, precision, weights.special_token_ids)
        write_text(folder / CONFIG, json.dumps(config, indent=2) + "\n")
        verdict = logit_gate.NOT_ASKED
        if own_arguments is not None:
            verdict = logit_gate.compare(weights, own_arguments, folder, folder / CONFIG)
        write_text(folder / "README.md", model_card(out.absolute().name, manifest, verdict, scores or {}))
    engine = tokenizer_file(weights.tokenizer_files)
    return Exported(out, manifest.step, weights.model.parameters, precision, engine.name if engine else None, verdict)


def chat_format(manifest: Manifest) -> Chat | None:
    """The chat template of the conversations that the model was trained on; None without conversations."""
    plan = manifest.state.get("plan")
    if not isinstance(plan, Mapping) or "chat_template" not in plan:
        return None
    return Chat(plan["chat_template"], plan["end_of_answer"])
