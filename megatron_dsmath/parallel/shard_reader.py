"""Single tensors out of megatron-core's sharded format, read in one process without a process group."""

from __future__ import annotations

import io
from pathlib import Path

import torch

from megatron_dsmath.errors import CheckpointError
from megatron_dsmath.parallel.shard_metadata import Chunk, Stored, damaged, model_tensors

_LAYERS = "decoder.layers."


class ShardReader:
    """The model's tensors in a `torch_dist` folder by megatron-core's names, one entry a layer, whatever the layout.

    megatron-core stacks the layers along a new first axis where they are alike; here they have their numbers back:
    `decoder.layers.3.mlp.linear_fc2.weight`. `shapes`: the whole shape of each tensor.
    """

    def __init__(self, folder: Path) -> None:
        """Read the description of the folder. Raises CheckpointError."""
        self.folder = folder
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._tensors = model_tensors(folder)
        for key, stored in self._tensors.items():
            rest = key.removeprefix(_LAYERS)
            if rest == key or rest.split(".")[0].isdigit():
                self.shapes[key] = stored.shape
            else:
                self.shapes |= {f"{_LAYERS}{layer}.{rest}": stored.shape[1:] for layer in range(stored.shape[0])}

    def dtype(self, name: str) -> torch.dtype:
        """What a tensor is stored in."""
        return self._find(name)[0].dtype

    def read(self, name: str) -> torch.Tensor:
        """A whole tensor, put together from the parts that the ranks wrote.

        What no part covers stays NaN. Raises CheckpointError when a part is damaged or of another tensor.
        """
        stored, layer = self._find(name)
        whole = torch.full(self.shapes[name], torch.nan, dtype=stored.dtype)
        for chunk in stored.chunks:
            box = [slice(offset, offset + size) for offset, size in zip(chunk.offsets, chunk.sizes, strict=True)]
            if layer is None:
                whole[tuple(box)] = self._load(name, stored, chunk)
            elif box[0].start <= layer < box[0].stop:
                whole[tuple(box[1:])] = self._load(name, stored, chunk)[layer - box[0].start]
        return whole

    def _find(self, name: str) -> tuple[Stored, int | None]:
        if name in self._tensors:
            return self._tensors[name], None
        layer, rest = name.removeprefix(_LAYERS).split(".", 1)
        return self._tensors[_LAYERS + rest], int(layer)

    def _load(self, name: str, stored: Stored, chunk: Chunk) -> torch.Tensor:
        path = self.folder / chunk.file
        try:
            with path.open("rb") as file:
                file.seek(chunk.offset_bytes)
                data = file.read(chunk.length_bytes)
            tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
            found = tensor.dtype, tuple(tensor.shape)
        except Exception as error:  # torch.load raises a dozen kinds on damaged bytes
            raise damaged(path, error) from error
        if found != (stored.dtype, chunk.sizes):
            raise CheckpointError(
                "a part of a tensor is not what the description says",
                where=f"{path}: {name}",
                found=f"{found[0]} {list(found[1])}",
                expected=f"{stored.dtype} {list(chunk.sizes)}",
                fix="get the folder whole again, or use another checkpoint",
            )
        return tensor
