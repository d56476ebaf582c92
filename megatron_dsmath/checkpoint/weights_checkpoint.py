"""Checkpoints that hold weights only: safetensors under Hugging Face's names, read and written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_dsmath.checkpoint import store, tokenizer_files, whole_directory
from megatron_dsmath.checkpoint.logit_verdict import LogitVerdict
from megatron_dsmath.checkpoint.manifest import MANIFEST, Manifest, Precision
from megatron_dsmath.checkpoint.safetensors_files import SafetensorsFiles
from megatron_dsmath.checkpoint.safetensors_writer import size_bytes, write_safetensors
from megatron_dsmath.checkpoint.weight_reader import PRECISIONS, SafetensorsWeights, WeightReader, require_all
from megatron_dsmath.errors import ConversionError

FOLDER = "weights"


class WeightsCheckpoint(SafetensorsWeights):
    """The weights of a checkpoint of the kind `weights`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Read the headers. Raises ConversionError when they are not those of the manifest's model."""
        self.path, self.model = path, manifest.model
        self.tokenizer_files = files_of(path, manifest)
        self.special_token_ids = tokenizer_files.special_token_ids(self.tokenizer_files)
        self._files = SafetensorsFiles(path / FOLDER)
        found = {name: tensor.shape for name, tensor in self._files.tensors.items()}
        require_all(path, self.model, found)


def files_of(checkpoint: Path, manifest: Manifest) -> tuple[Path, ...]:
    """The tokenizer files of a checkpoint."""
    prefix = f"{tokenizer_files.FOLDER}/"
    return tuple(checkpoint / name for name in sorted(manifest.files) if name.startswith(prefix))


def precision_of(weights: WeightReader) -> Precision:
    """The type in which all tensors are stored, or mixed."""
    dtypes = {weights.dtype(name) for name in weights.shapes}
    return PRECISIONS[dtypes.pop()] if len(dtypes) == 1 else "mixed"


def described(weights: WeightReader) -> Manifest:
    """The manifest of these weights as a checkpoint of step 0, its files not yet hashed. Raises TokenizerError."""
    tokenizer = tokenizer_files.load_from(weights.tokenizer_files)
    if tokenizer is not None and tokenizer.vocabulary_size > weights.model.vocabulary_size:
        raise ConversionError(
            "the tokenizer has more words than the model",
            where=tokenizer.path,
            found=f"{tokenizer.vocabulary_size} words",
            expected=f"at most {weights.model.vocabulary_size}, the rows of the embedding",
            fix="put the tokenizer that belongs to these weights into the folder",
        )
    return Manifest(
        kind="weights",
        step=0,
        next_sample=0,
        consumed_tokens=0,
        model=weights.model,
        layout={},
        precision=precision_of(weights),
        tokenizer_fingerprint=tokenizer.fingerprint if tokenizer else None,
        state={"source": weights.path.resolve().name},
    )


def write_weights_checkpoint(
    weights: WeightReader, out: Path, compare: Callable[[Path], LogitVerdict]
) -> tuple[Manifest, LogitVerdict]:
    """Write a checkpoint of step 0 at `out`, tensor by tensor, whole or not at all; returns its manifest.

    `compare` is handed the directory, complete but without its final name; what it raises leaves no checkpoint, what
    it returns stands in the manifest. Raises TokenizerError, OutputError, and what reading `weights` raises.
    """
    manifest = described(weights)
    tensors = {name: (shape, weights.dtype(name)) for name, shape in weights.shapes.items()}
    whole_directory.require_absent(out)
    store.preflight(out.absolute().parent, sum(size_bytes(*tensor) for tensor in tensors.values()))
    with whole_directory.whole_directory(out) as folder:
        (folder / FOLDER).mkdir()
        write_safetensors(folder / FOLDER, tensors, weights.read_whole)
        tokenizer_files.write_beside_weights(weights, folder / tokenizer_files.FOLDER)
        manifest = _written(folder, manifest.model_copy(update={"files": store.hashes(folder)}))
        verdict = compare(folder)
        return _written(folder, manifest.model_copy(update={"logit_gate": verdict})), verdict


def _written(folder: Path, manifest: Manifest) -> Manifest:
    (folder / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    whole_directory.sync(folder / MANIFEST)
    return manifest
