"""Read tensors of megatron-core's sharded format in one process, without a process group."""

from __future__ import annotations

import io
import pickle
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch

from megatron_dsmath.errors import CheckpointError

METADATA = ".metadata"
_LAYERS = "decoder.layers."
# megatron-core writes no prefix; NeMo and wrapped models write one before each key.
_PREFIXES = ("", "model.", "module.")
_MODEL_PARTS = ("embedding.", "decoder.", "output_layer.")
# Classes that `.metadata` may name; each is unpickled as a `_Record`.
_RECORD_MODULES = {
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.planner",
    "torch.distributed.checkpoint.filesystem",
    "torch.distributed._shard.sharded_tensor.metadata",  # until torch 2.2
}
_RECORDS = {("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("pathlib._local", "PosixPath")}


class Chunk(NamedTuple):
    """A part of a tensor and the location of its bytes."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    offset_bytes: int
    length_bytes: int


class StoredTensor(NamedTuple):
    """A tensor and its chunks, which together have as many values as the tensor."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]


class ShardReader:
    """Reads the model's tensors of a `torch_dist` folder by megatron-core's names, for any layout that wrote it.

    megatron-core stacks equal layers along a new first axis; here each layer is its own tensor, as in
    `decoder.layers.3.mlp.linear_fc2.weight`. `shapes`: the whole shape of each tensor.
    """

    def __init__(self, folder: Path) -> None:
        """Read `.metadata`. Raises CheckpointError."""
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
        """The stored type of a tensor."""
        return self._find(name)[0].dtype

    def read(self, name: str, rows: torch.Tensor | None = None) -> torch.Tensor:
        """Read a tensor, or the rows with the indices `rows` (1-D), from the chunks that the ranks wrote.

        Only the bytes of these rows are read. Values in no chunk are NaN. Raises CheckpointError if a chunk is damaged
        or belongs to another tensor.
        """
        stored, layer = self._find(name)
        rows = torch.arange(self.shapes[name][0]) if rows is None else rows
        values = torch.full((len(rows), *self.shapes[name][1:]), torch.nan, dtype=stored.dtype)
        for chunk in stored.chunks:
            box = [slice(offset, offset + size) for offset, size in zip(chunk.offsets, chunk.sizes, strict=True)]
            if layer is not None:
                stacked, *box = box
                if not stacked.start <= layer < stacked.stop:
                    continue
            inside = ((rows >= box[0].start) & (rows < box[0].stop)).nonzero()[:, 0]
            if len(inside):
                held = self._map(name, stored, chunk)
                held = held if layer is None else held[layer - chunk.offsets[0]]
                target: Any = (inside, *box[1:])
                values[target] = held[rows[inside] - box[0].start]
        return values

    def _find(self, name: str) -> tuple[StoredTensor, int | None]:
        if name in self._tensors:
            return self._tensors[name], None
        layer, rest = name.removeprefix(_LAYERS).split(".", 1)
        return self._tensors[_LAYERS + rest], int(layer)

    def _map(self, name: str, stored: StoredTensor, chunk: Chunk) -> torch.Tensor:
        """The values of a chunk, mapped from its file."""
        path = self.folder / chunk.file
        try:
            with path.open("rb") as file:
                archive = io.BufferedReader(_Archive(file, chunk))
                described = torch.load(archive, map_location="meta", weights_only=True)
                archive.seek(0)
                start = torch._C.PyTorchFileReader(archive).get_record_offset("data/0")  # type: ignore[attr-defined]
            length = described.untyped_storage().nbytes()
            if start + length > chunk.length_bytes:
                raise ValueError(f"{length:,} bytes of values in {chunk.length_bytes:,}")
            mapped = np.memmap(path, np.uint8, "c", chunk.offset_bytes + start, (length,))
            values = torch.from_numpy(mapped).view(described.dtype)
            tensor = values.as_strided(described.shape, described.stride(), described.storage_offset())
            found = tensor.dtype, tuple(tensor.shape)
        except Exception as error:  # torch.load raises many types of errors on damaged bytes
            raise damaged(path, error) from error
        if found != (stored.dtype, chunk.sizes):
            raise CheckpointError(
                f"a part of a tensor is not what {METADATA} describes",
                where=f"{path}: {name}",
                found=f"{found[0]} {list(found[1])}",
                expected=f"{stored.dtype} {list(chunk.sizes)}",
                fix="download or copy the complete folder again, or use another checkpoint",
            )
        return tensor


def model_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The model's tensors by megatron-core's keys, without the optimizer's state and other objects.

    Raises CheckpointError if `.metadata` is missing, damaged, or names anything but descriptions of tensors.
    """
    metadata: Any = _unpickle(folder / METADATA)
    try:
        locations = {
            (index.fqn, _numbers(index.offset)): location
            for index, location in metadata.storage_data.items()
            if getattr(index, "offset", None) is not None  # None: not a tensor
        }
        entries = {key: entry for key, entry in metadata.state_dict_metadata.items() if hasattr(entry, "chunks")}
        prefix = next((prefix for prefix in _PREFIXES if any(_is_of_model(key, prefix) for key in entries)), "")
        return {
            key.removeprefix(prefix): _stored(folder, key, entry, locations)
            for key, entry in entries.items()
            if _is_of_model(key, prefix)
        }
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise damaged(folder / METADATA, error) from error


def check_metadata(folder: Path) -> None:
    """Raise CheckpointError as `model_tensors` does; call this before megatron-core unpickles the same file."""
    _unpickle(folder / METADATA)


def damaged(path: Path, found: object) -> CheckpointError:
    """The error for a file of a sharded checkpoint that cannot be read."""
    return CheckpointError(
        "a file of the checkpoint's shards is missing or damaged",
        where=path,
        found=found,
        expected="what megatron-core's torch_dist format writes",
        fix="download or copy the complete folder again, or use another checkpoint",
    )


def _is_of_model(key: str, prefix: str) -> bool:
    return key.startswith(tuple(prefix + part for part in _MODEL_PARTS))


def _stored(folder: Path, key: str, entry: Any, locations: dict[tuple[str, tuple[int, ...]], Any]) -> StoredTensor:
    shape, dtype = _numbers(entry.size), entry.properties.fields[0]  # TensorProperties pickles itself as a tuple
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{key}: a {type(dtype).__name__} instead of a dtype")
    chunks = tuple(_chunk(folder, key, chunk, locations) for chunk in entry.chunks)
    # Checked before memory is allocated by these sizes: there must be bytes for all values.
    stored_values = sum(prod(chunk.sizes) for chunk in chunks)
    if stored_values != prod(shape):
        raise ValueError(f"{key}: chunks with {stored_values:,} values for a tensor of {prod(shape):,}")
    for chunk in chunks:
        sides = zip(chunk.offsets, chunk.sizes, shape, strict=True)
        if any(offset + size > side for offset, size, side in sides):
            raise ValueError(f"{key}: a chunk exceeds the shape {shape}")
        if prod(chunk.sizes) * dtype.itemsize > chunk.length_bytes:
            raise ValueError(f"{key}: {chunk.length_bytes:,} bytes for a chunk of shape {chunk.sizes}")
    return StoredTensor(shape, dtype, chunks)


def _chunk(folder: Path, key: str, chunk: Any, locations: dict[tuple[str, tuple[int, ...]], Any]) -> Chunk:
    offsets, sizes = _numbers(chunk.offsets), _numbers(chunk.sizes)
    location = locations[key, offsets]
    file, (offset, length) = location.relative_path, _numbers((location.offset, location.length))
    if Path(file).name != file or file == ".." or getattr(location, "transform_descriptors", None):
        raise ValueError(f"{key}: a chunk is in {file!r}, which is not a plain file of this folder")
    path = folder / file
    if not path.is_file():
        raise damaged(path, "no such file")
    if offset + length > path.stat().st_size:
        raise damaged(path, f"{path.stat().st_size:,} bytes, {offset + length:,} of them named in {METADATA}")
    return Chunk(offsets, sizes, file, offset, length)


def _numbers(values: Any) -> tuple[int, ...]:
    numbers = tuple(values)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"{numbers!r} instead of sizes")
    return numbers


def _unpickle(path: Path) -> _Record:
    try:
        metadata = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except _ForbiddenNameError as error:
        raise CheckpointError(
            f"the checkpoint's {METADATA} could run a program when it is read",
            where=path,
            found=f"the pickle names {error}",
            expected="only the classes with which torch.distributed.checkpoint describes tensors",
            fix="do not use this checkpoint, and find out who changed it",
        ) from None
    except Exception as error:  # a damaged pickle can raise any error
        raise damaged(path, error) from error
    if not isinstance(metadata, _Record):
        raise damaged(path, f"a {type(metadata).__name__}")
    return metadata


class _Archive(io.RawIOBase):
    """The bytes of a chunk in a file, which torch reads as a file of its own."""

    def __init__(self, file: BinaryIO, chunk: Chunk) -> None:
        self._file, self._start, self._length, self._position = file, chunk.offset_bytes, chunk.length_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._length}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        self._file.seek(self._start + self._position)
        content = self._file.read(max(0, min(len(buffer), self._length - self._position)))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)


class _Record:
    """Replaces a class that `.metadata` names: holds the pickled fields and runs no code."""

    def __init__(self, *fields: Any) -> None:
        self.fields = fields

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.fields = state


class _ForbiddenNameError(Exception):
    """A pickle names something that does not describe tensors."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module in _RECORD_MODULES or (module, name) in _RECORDS:
            return _Record
        if (module, name) == ("torch", "Size"):
            return tuple
        if (module, name) == ("collections", "OrderedDict"):
            return dict
        found = vars(torch).get(name) if module == "torch" else None
        if isinstance(found, torch.dtype):
            return found
        raise _ForbiddenNameError(f"{module}.{name}")
