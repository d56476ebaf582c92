"""The weights of checkpoints by Hugging Face's names: safetensors files, and megatron-core's shards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from megatron_dsmath.checkpoint import store, tokenizer_files, weight_reader
from megatron_dsmath.checkpoint.manifest import LogitVerdict, Manifest, Precision
from megatron_dsmath.checkpoint.safetensors_files import SafetensorsFiles, size_bytes, write_safetensors
from megatron_dsmath.checkpoint.weight_reader import PRECISIONS, SafetensorsWeights, WeightReader
from megatron_dsmath.config.sections import ModelConfig
from megatron_dsmath.errors import ConversionError
from megatron_dsmath.files import directories
from megatron_dsmath.model.parameters import TRANSFORMER_ENGINE_NAMES, Parameter, parameters
from megatron_dsmath.parallel.shard_reader import ShardReader

WEIGHTS_FOLDER = "weights"
SHARDS_FOLDER = "shards"


class WeightsCheckpoint(SafetensorsWeights):
    """The weights of a checkpoint of kind `weights`."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        """Read the headers. Raises ConversionError if the tensors are not those of the manifest's model."""
        self.path, self.model = path, manifest.model
        self.tokenizer_files = checkpoint_tokenizer_files(path, manifest)
        self.special_token_ids = tokenizer_files.special_token_ids(self.tokenizer_files)
        self._files = SafetensorsFiles(path / WEIGHTS_FOLDER)
        found = {name: tensor.shape for name, tensor in self._files.tensors.items()}
        weight_reader.require_all(path, self.model, found)


class ShardedWeights(WeightReader):
    """The weights in a `torch_dist` folder, written in any layout by this program or by Megatron-LM.

    With `padded_vocabulary` the embedding and the output layer may have more rows than the model; these are left out.
    """

    def __init__(
        self,
        folder: Path,
        model: ModelConfig,
        tokenizer_files: tuple[Path, ...],
        special_token_ids: Mapping[str, Any],
        padded_vocabulary: bool = False,
    ) -> None:
        """Read the metadata of the shards.

        Raises CheckpointError, and ConversionError if a tensor is missing, extra or of another shape or type.
        """
        self.path, self.model = folder, model
        self.tokenizer_files, self.special_token_ids = tokenizer_files, special_token_ids
        self._shards = ShardReader(folder)
        weight_reader.require_layers(folder, model, len(self._shards.shapes))
        self._table = {name: parameter for parameter in parameters(model) for name in parameter.hf_names}
        self._names = {parameter.name: self._stored_name(parameter.name) for parameter in parameters(model)}
        self._check(padded_vocabulary)

    def dtype(self, name: str) -> torch.dtype:
        """The stored type of a tensor."""
        return self._shards.dtype(self._names[self._table[name].name])

    def _read(self, name: str, part: tuple[slice, ...]) -> torch.Tensor:
        parameter = self._table[name]
        fused_rows = torch.arange(sum(shape[0] for shape in parameter.hf_shapes))[:, None]
        unfused_rows = parameter.unfuse(fused_rows, self.model.key_value_heads)[parameter.hf_names.index(name)][:, 0]
        columns = (slice(None), *part[1:])
        return self._shards.read(self._names[parameter.name], unfused_rows[part[0]])[columns]

    def close(self) -> None:
        """Do nothing: files are open only while they are read."""

    def read_fused(self, parameter: Parameter) -> torch.Tensor:
        """Read a whole parameter as the ranks wrote it, without `unfuse`, so that the logit gate can test `unfuse`."""
        rows = torch.arange(self.model.vocabulary_size) if parameter.is_vocabulary else None
        tensor = self._shards.read(self._names[parameter.name], rows)
        weight_reader.require_finite(self.path, parameter.name, tensor)
        return tensor

    def _stored_name(self, name: str) -> str:
        for suffix, stored_suffix in TRANSFORMER_ENGINE_NAMES.items():
            if name.endswith(suffix) and name not in self._shards.shapes:
                return name.removesuffix(suffix) + stored_suffix
        return name

    def _check(self, padded_vocabulary: bool) -> None:
        found, expected = dict(self._shards.shapes), {}
        for parameter in parameters(self.model):
            name, (first, *rest) = self._names[parameter.name], parameter.hf_shapes
            rows, *columns = first
            expected[name] = (rows + sum(shape[0] for shape in rest), *columns)
            if padded_vocabulary and parameter.is_vocabulary and found.get(name):
                found[name] = (min(found[name][0], rows), *found[name][1:])
        weight_reader.require_shapes(self.path, expected, found)
        for name in expected:
            if self._shards.dtype(name) not in PRECISIONS:
                raise ConversionError(
                    "a tensor has a type that is not supported",
                    where=f"{self.path}: {name}",
                    found=self._shards.dtype(name),
                    expected=f"one of {', '.join(map(str, PRECISIONS))}",
                    fix="save the weights unquantized",
                )


def write_weights_checkpoint(
    weights: WeightReader,
    out: Path,
    compare: Callable[[Path], LogitVerdict | None] = lambda _: None,
    facts: Mapping[str, Any] | None = None,
) -> Manifest:
    """Write a checkpoint of step 0 at `out`, block by block; returns its manifest with the result of `compare`.

    `compare` gets the directory, complete but without its final name. `facts` replace values of the manifest. After any
    error nothing is left. Raises TokenizerError, OutputError, and the errors of reading `weights` and of `compare`.
    """
    manifest = describe_weights(weights).model_copy(update=facts)
    tensors = {name: (shape, weights.dtype(name)) for name, shape in weights.shapes.items()}
    directories.require_absent(out)
    store.require_space(out.absolute().parent, sum(size_bytes(*tensor) for tensor in tensors.values()))
    with directories.atomic_directory(out) as folder:
        (folder / WEIGHTS_FOLDER).mkdir()
        write_safetensors(folder / WEIGHTS_FOLDER, tensors, weights.row_blocks)
        tokenizer_files.write_beside_weights(weights, folder / tokenizer_files.FOLDER)
        manifest = manifest.model_copy(update={"files": store.hash_files(folder)})
        store.write_manifest(folder, manifest)  # `compare` opens the folder as a checkpoint
        manifest = manifest.model_copy(update={"logit_gate": compare(folder)})
        store.write_manifest(folder, manifest)
    return manifest


def describe_weights(weights: WeightReader) -> Manifest:
    """The manifest, without files, of these weights as a checkpoint of step 0.

    Raises TokenizerError, and ConversionError if the tokenizer has more tokens than the embedding has rows.
    """
    tokenizer = tokenizer_files.load_from(weights.tokenizer_files)
    if tokenizer is not None and tokenizer.vocabulary_size > weights.model.vocabulary_size:
        raise ConversionError(
            "the tokenizer has more tokens than the model",
            where=tokenizer.path,
            found=f"{tokenizer.vocabulary_size} tokens",
            expected=f"at most {weights.model.vocabulary_size}, the number of rows of the embedding",
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


def precision_of(weights: WeightReader) -> Precision:
    """The type of all stored tensors, or `mixed`."""
    dtypes = {weights.dtype(name) for name in weights.shapes}
    return PRECISIONS[dtypes.pop()] if len(dtypes) == 1 else "mixed"


def checkpoint_tokenizer_files(checkpoint: Path, manifest: Manifest) -> tuple[Path, ...]:
    """The tokenizer files of a checkpoint."""
    prefix = f"{tokenizer_files.FOLDER}/"
    return tuple(checkpoint / name for name in sorted(manifest.files) if name.startswith(prefix))
