"""The interface of stored weights: one tensor at a time by Hugging Face's names, in any storage format."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from megatron_dsmath.checkpoint.manifest import Precision
from megatron_dsmath.checkpoint.safetensors_files import SafetensorsFiles
from megatron_dsmath.config.sections import ModelConfig
from megatron_dsmath.errors import ConversionError
from megatron_dsmath.model.parameters import Parameter, Shape, parameters

DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
BLOCK_VALUES = 1 << 21  # of a tensor, in memory at a time: 8 MB in fp32
PRECISIONS = {dtype: name for name, dtype in DTYPES.items()}


class WeightReader(ABC):
    """Stored weights of a model. Tensors are read on request and by parts, so that memory is bounded by one part.

    `path`: where the weights are stored. `model`: the model's configuration. `tokenizer_files`: the tokenizer's files
    and generation settings next to the weights. `special_token_ids`: BOS, EOS and padding, if known, by config.json's
    keys.
    """

    path: Path
    model: ModelConfig
    tokenizer_files: tuple[Path, ...]
    special_token_ids: Mapping[str, Any]

    @cached_property
    def shapes(self) -> dict[str, Shape]:
        """The whole shape of every tensor, in the order of the forward pass."""
        return tensor_shapes(self.model)

    @abstractmethod
    def dtype(self, name: str) -> torch.dtype:
        """The stored type of the tensor `name`."""

    @abstractmethod
    def _read(self, name: str, part: tuple[slice, ...]) -> torch.Tensor:
        """Read a part of the tensor `name` in its stored type."""

    def read(self, name: str, shape: Shape, part: tuple[slice, ...]) -> torch.Tensor:
        """Read a part of the tensor `name`, whose whole shape must be `shape`, in its stored type on the CPU.

        Raises ConversionError if it has another shape, or contains NaN or infinity.
        """
        if self.shapes.get(name) != shape:
            raise wrong_shape(self.path, name, self.shapes.get(name), shape)
        tensor = self._read(name, part)
        require_finite(self.path, name, tensor)
        return tensor

    def read_whole(self, name: str) -> torch.Tensor:
        """Read the whole tensor `name`; raises as `read`."""
        shape = self.shapes[name]
        return self.read(name, shape, tuple(slice(None) for _ in shape))

    def row_blocks(self, name: str) -> Iterator[torch.Tensor]:
        """Read the tensor `name` in blocks of whole rows with at most BLOCK_VALUES values; raises as `read`."""
        shape = self.shapes[name]
        rows = max(1, BLOCK_VALUES * shape[0] // torch.Size(shape).numel())
        for first in range(0, shape[0], rows):
            block = slice(first, min(first + rows, shape[0]))
            yield self.read(name, shape, (block, *(slice(None) for _ in shape[1:])))

    def read_fused(self, parameter: Parameter) -> torch.Tensor:
        """Read a whole parameter in the decoder's fused form; raises as `read`."""
        return parameter.fuse([self.read_whole(name) for name in parameter.hf_names], self.model.key_value_heads)

    @abstractmethod
    def close(self) -> None:
        """Close files and release memory."""


class SafetensorsWeights(WeightReader):
    """Weights in safetensors files by Hugging Face's names."""

    _files: SafetensorsFiles

    def dtype(self, name: str) -> torch.dtype:
        """The stored type of a tensor."""
        return self._files.tensors[name].dtype

    def _read(self, name: str, part: tuple[slice, ...]) -> torch.Tensor:
        return self._files.read(name, part)

    def close(self) -> None:
        """Close the files."""
        self._files.close()


def tensor_shapes(model: ModelConfig) -> dict[str, Shape]:
    """The shapes of all tensors of the model by Hugging Face's names, in the order of the forward pass."""
    return {
        name: shape
        for parameter in parameters(model)
        for name, shape in zip(parameter.hf_names, parameter.hf_shapes, strict=True)
    }


def require_layers(path: Path, model: ModelConfig, tensors: int) -> None:
    """Raise ConversionError if there are fewer tensors than layers; this bounds the work for a wrong config.json."""
    if model.layers > tensors:
        raise ConversionError(
            "tensors are missing",
            where=path,
            found=f"{tensors} tensors",
            expected=f"those of {model.layers} layers",
            fix="download or copy the complete folder again, or correct the number of layers in config.json",
        )


def require_all(path: Path, model: ModelConfig, found: Mapping[str, Shape]) -> None:
    """Raise ConversionError unless `found` has exactly the model's tensors and shapes by Hugging Face's names."""
    require_layers(path, model, len(found))
    require_shapes(path, tensor_shapes(model), found)


def require_shapes(path: Path, expected: Mapping[str, Shape], found: Mapping[str, Shape]) -> None:
    """Raise ConversionError unless both have the same tensors and shapes."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    if extra:
        raise ConversionError(
            f"{len(extra)} tensors do not belong to this model",
            where=path,
            found=_some(extra),
            expected=f"only the {len(expected)} tensors of a LLaMA without biases",
            fix="use the weights of a plain LlamaForCausalLM, or correct the number of layers in config.json",
        )
    if missing:
        raise ConversionError(
            f"{len(missing)} tensors are missing",
            where=path,
            found=_some(missing),
            expected=f"all {len(expected)} tensors of the model",
            fix="download or copy the complete folder again, or correct the number of layers in config.json",
        )
    for name, shape in expected.items():
        if found[name] != shape:
            raise wrong_shape(path, name, found[name], shape)


def wrong_shape(path: Path, name: str, found: Shape | None, expected: Shape) -> ConversionError:
    """The error for a tensor with another shape than the model's."""
    return ConversionError(
        "a tensor does not have the shape of the model",
        where=f"{path}: {name}",
        found=list(found) if found is not None else "no such tensor",
        expected=list(expected),
        fix="use the weights of this configuration, or correct its sizes",
    )


def require_finite(path: Path, name: str, tensor: torch.Tensor) -> None:
    """Raise ConversionError if a tensor contains NaN or infinity."""
    # aminmax propagates NaN and infinity and needs no memory, unlike isfinite of every value.
    if not all(extreme.isfinite() for extreme in tensor.aminmax()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise ConversionError(
            "a tensor contains NaN or infinity",
            where=f"{path}: {name}",
            found=f"{bad:,} of {tensor.numel():,} values are not finite",
            expected="finite numbers",
            fix="use weights from before the model diverged, or download or copy the file again",
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
