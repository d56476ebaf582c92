"""Tensors to safetensors files, laid out as Hugging Face does, one tensor in memory at a time."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from megatron_dsmath.checkpoint.safetensors_files import DTYPES, INDEX, SINGLE
from megatron_dsmath.checkpoint.whole_directory import sync
from megatron_dsmath.model.parameters import Shape

SHARD_BYTES = 5_000_000_000  # what Hugging Face's own writer keeps below

_CODES = {dtype: code for code, dtype in DTYPES.items()}


def write_safetensors(
    folder: Path,
    tensors: Mapping[str, tuple[Shape, torch.dtype]],
    read: Callable[[str], torch.Tensor],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `tensors` into `folder`, each file at most `shard_bytes`, holding one tensor in memory at a time.

    `read` gives a tensor by name. Bytes equal what the safetensors library writes for the same tensors.
    """
    shards = list(_shards(tensors, shard_bytes))
    names = [
        f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else SINGLE
        for number in range(1, len(shards) + 1)
    ]
    for file, shard in zip(names, shards, strict=True):
        _write_file(folder / file, {name: tensors[name] for name in shard}, read)
    if len(shards) > 1:
        weight_map = {name: file for file, shard in zip(names, shards, strict=True) for name in shard}
        total = sum(size_bytes(*tensor) for tensor in tensors.values())
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        sync(folder / INDEX)


def size_bytes(shape: Shape, dtype: torch.dtype) -> int:
    """Bytes of a tensor."""
    return torch.Size(shape).numel() * dtype.itemsize


def _shards(tensors: Mapping[str, tuple[Shape, torch.dtype]], shard_bytes: int) -> Iterator[list[str]]:
    shard: list[str] = []
    room = shard_bytes
    for name, tensor in tensors.items():
        if shard and size_bytes(*tensor) > room:
            yield shard
            shard, room = [], shard_bytes
        shard.append(name)
        room -= size_bytes(*tensor)
    yield shard


def _write_file(
    path: Path, tensors: Mapping[str, tuple[Shape, torch.dtype]], read: Callable[[str], torch.Tensor]
) -> None:
    # The library's order: wide types first, so that every tensor is aligned; then by name.
    names = sorted(tensors, key=lambda name: (-tensors[name][1].itemsize, _CODES[tensors[name][1]], name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in names:
        shape, dtype = tensors[name]
        end = offset + size_bytes(shape, dtype)
        header[name] = {"dtype": _CODES[dtype], "shape": list(shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name in names:
            _append(file, read(name), *tensors[name])
    sync(path)


def _append(file: BinaryIO, tensor: torch.Tensor, shape: Shape, dtype: torch.dtype) -> None:
    assert (tuple(tensor.shape), tensor.dtype) == (shape, dtype)
    file.write(tensor.contiguous().view(torch.uint8).numpy().data)
