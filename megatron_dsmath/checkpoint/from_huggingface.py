"""Read the weights of a Hugging Face folder, and import it as a checkpoint."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from megatron_dsmath.checkpoint import logit_gate
from megatron_dsmath.checkpoint.checkpoint_weights import write_weights_checkpoint
from megatron_dsmath.checkpoint.huggingface_config import CONFIG, model_from
from megatron_dsmath.checkpoint.manifest import LogitVerdict, Manifest
from megatron_dsmath.checkpoint.safetensors_files import SafetensorsFiles, inside, read_json
from megatron_dsmath.checkpoint.tokenizer_files import special_token_ids, tokenizer_files
from megatron_dsmath.checkpoint.weight_reader import SafetensorsWeights, require_all
from megatron_dsmath.errors import ConversionError

# Rotary frequencies, buffers that transformers wrote until 4.31; they follow from rope_theta.
_BUFFER = re.compile(r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq")


class HuggingFaceFolder(SafetensorsWeights):
    """The weights of a folder with a `LlamaForCausalLM`: config.json, safetensors files, tokenizer files.

    `skipped`: tensors that are not weights of the model (rotary frequencies of old exports).
    """

    def __init__(self, path: Path) -> None:
        """Read the configuration and the headers of the weights. Raises ConversionError if they are not valid."""
        if not path.is_dir():
            raise ConversionError(
                "there is no such folder",
                where=path,
                found="a file" if path.exists() else "nothing at this path",
                expected=f"a folder with {CONFIG} and safetensors files",
                fix="give the path of a downloaded Hugging Face model",
            )
        self.path = path
        self.config = read_json(inside(path, CONFIG))
        self.model = model_from(self.config, path / CONFIG)
        self.tokenizer_files = tokenizer_files(path)
        self.special_token_ids = special_token_ids(self.tokenizer_files, self.config)
        self._files = SafetensorsFiles(path)
        self.skipped = tuple(name for name in self._files.tensors if _BUFFER.fullmatch(name))
        found = {name: tensor.shape for name, tensor in self._files.tensors.items() if name not in self.skipped}
        require_all(path, self.model, found)


@dataclass(frozen=True)
class Imported:
    """The result of an import; its text is printed for the user."""

    checkpoint: Path
    manifest: Manifest
    skipped: tuple[str, ...] = ()

    def __str__(self) -> str:
        manifest = self.manifest
        lines = [f"{self.checkpoint}: {manifest.model.parameters:,} parameters in {manifest.precision}"]
        if self.skipped:
            lines.append(f"left out: {len(self.skipped)} rotary_emb.inv_freq buffers, which follow from rope_theta")
        lines.append(f"logits: {manifest.logit_gate}")
        lines.append("licence: the weights keep theirs (DeepSeek's are under the DeepSeek Model License)")
        return "\n".join(lines)


def import_folder(folder: Path, out: Path, gate: bool = True) -> Imported:
    """Import a Hugging Face folder as the checkpoint `out` (weights, step 0), with unchanged values.

    `gate`: compare the checkpoint's logits with those of transformers. Raises ConversionError for a folder that is
    damaged, of an unsupported model, or with other logits; TokenizerError; and OutputError if `out` is not empty or
    cannot be written. A failed import leaves nothing.
    """

    def compare(checkpoint: Path) -> LogitVerdict:
        return logit_gate.compare(source, [checkpoint], folder, folder / CONFIG) if gate else logit_gate.NOT_ASKED

    source = HuggingFaceFolder(folder)
    try:
        return Imported(out, write_weights_checkpoint(source, out, compare), source.skipped)
    finally:
        source.close()
