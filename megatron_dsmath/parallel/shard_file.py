"""The byte layout of a rank's file in a checkpoint. It is fixed in advance, so that a save only copies values.

torch's distributed checkpoints store each box of a tensor as `torch.save` writes it: a header, the values, a trailer.
Headers and trailers depend only on type and sizes, so they are written once; each save copies the values between them.
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
from torch.distributed.checkpoint import metadata as torch_metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex, TensorStorageMetadata

from megatron_dsmath.parallel.state_parts import Box, Part

ALIGNMENT_BYTES = 64  # torch's own alignment of values in an archive


class Entry(NamedTuple):
    """The location of a box in the files of a checkpoint; `dtype` and `shape` are those of the whole tensor."""

    key: str
    dtype: torch.dtype | None  # None for an object that is not a tensor
    shape: tuple[int, ...]
    box: Box
    file: str
    start_bytes: int
    length_bytes: int


class ShardFile:
    """The layout of one rank's file: its `entries` and its size, `size_bytes`."""

    def __init__(self, name: str, parts: Sequence[Part], objects: dict[str, bytes]) -> None:
        self.name, self.size_bytes = name, 0
        self.entries: list[Entry] = []
        self._values_start: list[int] = []
        self._objects = objects
        for key, content in objects.items():
            self._add(key, None, (), Box((), ()), len(content))
        for part in parts:
            dtype, sizes = part.values.dtype, part.box.sizes
            header, trailer = _header_and_trailer(dtype, sizes)
            length = len(header) + prod(sizes) * dtype.itemsize + len(trailer)
            self._add(part.key, dtype, part.shape, part.box, length)
            self._values_start.append(self.entries[-1].start_bytes + len(header))

    def _add(self, key: str, dtype: torch.dtype | None, shape: tuple[int, ...], box: Box, length: int) -> None:
        self.entries.append(Entry(key, dtype, shape, box, self.name, self.size_bytes, length))
        self.size_bytes += -(-length // ALIGNMENT_BYTES) * ALIGNMENT_BYTES

    def write_constant_bytes(self, memory: torch.Tensor) -> None:
        """Write all bytes that are equal in every save into `memory`, at least `size_bytes` zero bytes."""
        for entry in self.entries:
            if entry.dtype is None:
                _write(memory, entry.start_bytes, self._objects[entry.key])
                continue
            header, trailer = _header_and_trailer(entry.dtype, entry.box.sizes)
            _write(memory, entry.start_bytes, header)
            _write(memory, entry.start_bytes + entry.length_bytes - len(trailer), trailer)

    def write_values(self, memory: torch.Tensor, parts: Sequence[Part]) -> None:
        """Copy the values of `parts` into `memory`; their keys, types and boxes must be those of the layout."""
        expected = [(entry.key, entry.dtype, entry.box) for entry in self.entries if entry.dtype is not None]
        found = [(part.key, part.values.dtype, part.box) for part in parts]
        assert expected == found, "the state has another shape than at the first save"
        for part, start in zip(parts, self._values_start, strict=True):
            target = memory[start : start + part.values.nbytes]
            target.view(part.values.dtype).view(part.values.shape).copy_(part.values, non_blocking=True)
        if any(part.values.is_cuda for part in parts):
            torch.cuda.synchronize()


def describe(entries: Iterable[Entry]) -> bytes:
    """The content of `.metadata`, which torch's loader reads: the locations of all ranks' entries."""
    chunks: dict[str, list[torch_metadata.ChunkStorageMetadata]] = defaultdict(list)
    described: dict[str, TensorStorageMetadata | BytesStorageMetadata] = {}
    locations = {}
    for entry in entries:
        location = _StorageInfo(entry.file, entry.start_bytes, entry.length_bytes)
        if entry.dtype is None:
            described[entry.key] = BytesStorageMetadata()
            locations[MetadataIndex(entry.key)] = location
            continue
        offsets, sizes = torch.Size(entry.box.offsets), torch.Size(entry.box.sizes)
        chunks[entry.key].append(torch_metadata.ChunkStorageMetadata(offsets, sizes))
        properties = torch_metadata.TensorProperties(dtype=entry.dtype)
        described[entry.key] = TensorStorageMetadata(properties, torch.Size(entry.shape), chunks[entry.key])
        locations[MetadataIndex(entry.key, offsets)] = location
    for key, tensor in described.items():
        if isinstance(tensor, TensorStorageMetadata):
            held = sum(prod(chunk.sizes) for chunk in tensor.chunks)
            assert held == prod(tensor.size), f"{key}: {held:,} values of {prod(tensor.size):,} would be saved"
    storage = torch_metadata.StorageMeta()
    metadata = torch_metadata.Metadata(described, storage_data=locations, storage_meta=storage)
    metadata.version = "1.0.0"
    return pickle.dumps(metadata)


@cache
def _header_and_trailer(dtype: torch.dtype, sizes: tuple[int, ...]) -> tuple[bytes, bytes]:
    """The bytes that `torch.save` writes before and after the values of a tensor.

    They are without the archive's checksums, which torch does not check when it loads; MANIFEST.json has sha256.
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


def _write(memory: torch.Tensor, start: int, content: bytes) -> None:
    memory[start : start + len(content)] = torch.frombuffer(bytearray(content), dtype=torch.uint8)
