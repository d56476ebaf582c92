"""The file that a rank adds to a checkpoint, laid out in memory byte by byte, so that saving is copying.

torch's distributed checkpoints hold each box of a tensor as `torch.save` writes it: a head, the values, a tail. Heads
and tails depend on type and sizes alone, so they are set in place once, and each save copies the values between them.
"""

from __future__ import annotations

import io
import pickle
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cache
from math import prod
from typing import NamedTuple

import torch
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from megatron_dsmath.parallel.state_parts import Box, Part

ALIGNMENT_BYTES = 64  # torch's own for values within an archive


class Entry(NamedTuple):
    """What stands where in the files of a checkpoint; `dtype` and `shape` are those of the whole tensor."""

    key: str
    dtype: torch.dtype | None  # None: no tensor
    shape: tuple[int, ...]
    box: Box
    file: str
    start_bytes: int
    length_bytes: int


class ShardFile:
    """The layout of one rank's file: `entries`, and `size_bytes` in all."""

    def __init__(self, name: str, parts: Sequence[Part], objects: dict[str, bytes]) -> None:
        self.name, self.size_bytes = name, 0
        self.entries: list[Entry] = []
        self._values_start: list[int] = []
        self._objects = objects
        for key, content in objects.items():
            self._add(key, None, (), Box((), ()), len(content))
        for part in parts:
            dtype, sizes = part.values.dtype, part.box.sizes
            head, tail = _frame(dtype, sizes)
            length = len(head) + prod(sizes) * dtype.itemsize + len(tail)
            self._add(part.key, dtype, part.shape, part.box, length)
            self._values_start.append(self.entries[-1].start_bytes + len(head))

    def _add(self, key: str, dtype: torch.dtype | None, shape: tuple[int, ...], box: Box, length: int) -> None:
        self.entries.append(Entry(key, dtype, shape, box, self.name, self.size_bytes, length))
        self.size_bytes += -(-length // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    def frame(self, memory: torch.Tensor) -> None:
        """Set into `memory` (bytes, at least `size_bytes` of zeros) all that is the same at every save."""
        for entry in self.entries:
            if entry.dtype is None:
                _set(memory, entry.start_bytes, self._objects[entry.key])
                continue
            head, tail = _frame(entry.dtype, entry.box.sizes)
            _set(memory, entry.start_bytes, head)
            _set(memory, entry.start_bytes + entry.length_bytes - len(tail), tail)

    def fill(self, memory: torch.Tensor, parts: Sequence[Part]) -> None:
        """Copy the values of `parts`, those that the file was laid out for, into `memory`."""
        assert self._is_for(parts), "the state has another shape than at the first save"
        for part, start in zip(parts, self._values_start, strict=True):
            place = memory[start : start + part.values.nbytes]
            place.view(part.values.dtype).view(part.values.shape).copy_(part.values, non_blocking=True)
        if any(part.values.is_cuda for part in parts):
            torch.cuda.synchronize()

    def _is_for(self, parts: Sequence[Part]) -> bool:
        laid_out = [(entry.key, entry.dtype, entry.box) for entry in self.entries if entry.dtype is not None]
        return laid_out == [(part.key, part.values.dtype, part.box) for part in parts]


def describe(entries: Iterable[Entry]) -> bytes:
    """`.metadata`: what is where, of all ranks' entries, as torch's loader wants it."""
    chunks: dict[str, list[ChunkStorageMetadata]] = defaultdict(list)
    described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    places = {}
    for entry in entries:
        place = _StorageInfo(entry.file, entry.start_bytes, entry.length_bytes)
        if entry.dtype is None:
            described[entry.key] = BytesStorageMetadata()
            places[MetadataIndex(entry.key)] = place
            continue
        offsets, sizes = torch.Size(entry.box.offsets), torch.Size(entry.box.sizes)
        chunks[entry.key].append(ChunkStorageMetadata(offsets, sizes))
        properties = TensorProperties(dtype=entry.dtype)
        described[entry.key] = TensorStorageMetadata(properties, torch.Size(entry.shape), chunks[entry.key])
        places[MetadataIndex(entry.key, offsets)] = place
    for key, tensor in described.items():
        if isinstance(tensor, TensorStorageMetadata):
            held = sum(prod(chunk.sizes) for chunk in tensor.chunks)
            assert held == prod(tensor.size), f"{key}: {held:,} values of {prod(tensor.size):,} would be saved"
    metadata = Metadata(described, storage_data=places, storage_meta=StorageMeta())
    metadata.version = "1.0.0"
    return pickle.dumps(metadata)


@cache
def _frame(dtype: torch.dtype, sizes: tuple[int, ...]) -> tuple[bytes, bytes]:
    """What `torch.save` writes before and after the values of such a tensor.

    Without the archive's own checksums, which torch does not look at when it loads; MANIFEST.json has better ones.
    """
    file = io.BytesIO()
    with_checksums = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(torch.zeros(sizes, dtype=dtype), file)
    finally:
        torch.serialization.set_crc32_options(with_checksums)
    file.seek(0)
    start = torch._C.PyTorchFileReader(file).get_record_offset("data/0")  # type: ignore[attr-defined]
    saved = file.getbuffer()
    return bytes(saved[:start]), bytes(saved[start + prod(sizes) * dtype.itemsize :])


def _set(memory: torch.Tensor, start: int, content: bytes) -> None:
    memory[start : start + len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
