"""Single tensors out of megatron-core's sharded format, read in one process without a process group."""

from __future__ import annotations

import io
import pickle
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch

from megatron_dsmath.errors import CheckpointError

METADATA = ".metadata"
# megatron-core writes the first; NeMo and wrapped models put a name before each key.
_PREFIXES = ("", "model.", "module.")
_MODEL_PARTS = ("embedding.", "decoder.", "output_layer.")

_RECORD_MODULES = {
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.planner",
    "torch.distributed.checkpoint.filesystem",
    "torch.distributed._shard.sharded_tensor.metadata",  # until torch 2.2
}
_RECORDS = {("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("pathlib._local", "PosixPath")}


class Chunk(NamedTuple):
    """A part of a tensor, and where its bytes are."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    offset_bytes: int
    length_bytes: int


class Stored(NamedTuple):
    """A tensor and its parts, which have as many values as it has."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[Chunk, ...]


def model_tensors(folder: Path) -> dict[str, Stored]:
    """The model's tensors by megatron-core's keys; the optimizer's state and other objects are left out.

    Raises CheckpointError when the description is missing, damaged, or names anything but a description of tensors.
    """
    metadata: Any = _unpickle(folder / METADATA)
    try:
        places = {
            (index.fqn, _numbers(index.offset)): place
            for index, place in metadata.storage_data.items()
            if getattr(index, "offset", None) is not None  # None: not a tensor
        }
        entries = {key: entry for key, entry in metadata.state_dict_metadata.items() if hasattr(entry, "chunks")}
        prefix = next((prefix for prefix in _PREFIXES if any(_is_of_model(key, prefix) for key in entries)), "")
        return {
            key.removeprefix(prefix): _stored(folder, key, entry, places)
            for key, entry in entries.items()
            if _is_of_model(key, prefix)
        }
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise damaged(folder / METADATA, error) from error


def check_metadata(folder: Path) -> None:
    """Raise CheckpointError as `model_tensors` does; to be called before megatron-core unpickles the same file."""
    _unpickle(folder / METADATA)


def damaged(path: Path, found: object) -> CheckpointError:
    """The error for a file of a sharded checkpoint that cannot be read."""
    return CheckpointError(
        "a file of the checkpoint's shards is missing or damaged",
        where=path,
        found=found,
        expected="what megatron-core's torch_dist format writes",
        fix="get the folder whole again, or use another checkpoint",
    )


class _Record:
    """Stands in for a class of the description: what was pickled, without behaviour."""

    def __init__(self, *fields: Any) -> None:
        self.fields = fields

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.fields = state


class _ForeignNameError(Exception):
    """A pickle names something that is no part of a description of tensors."""


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
        raise _ForeignNameError(f"{module}.{name}")


def _unpickle(path: Path) -> _Record:
    try:
        metadata = _Unpickler(io.BytesIO(path.read_bytes())).load()
    except _ForeignNameError as error:
        raise CheckpointError(
            "the checkpoint's description wants to run a program",
            where=path,
            found=f"the pickle names {error}",
            expected="only what torch.distributed.checkpoint describes tensors with",
            fix="do not use this checkpoint, and find out who changed it",
        ) from None
    except Exception as error:  # a damaged pickle raises anything
        raise damaged(path, error) from error
    if not isinstance(metadata, _Record):
        raise damaged(path, f"a {type(metadata).__name__}")
    return metadata


def _is_of_model(key: str, prefix: str) -> bool:
    return key.startswith(tuple(prefix + part for part in _MODEL_PARTS))


def _stored(folder: Path, key: str, entry: Any, places: dict[tuple[str, tuple[int, ...]], Any]) -> Stored:
    shape, dtype = _numbers(entry.size), entry.properties.fields[0]  # TensorProperties pickles itself as a tuple
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"{key}: a {type(dtype).__name__} where a dtype belongs")
    chunks = tuple(_chunk(folder, key, chunk, places) for chunk in entry.chunks)
    # Checked before anyone allocates by these sizes: no more values than there are bytes for.
    if sum(prod(chunk.sizes) for chunk in chunks) != prod(shape):
        raise ValueError(f"{key}: parts of {sum(prod(chunk.sizes) for chunk in chunks):,} values for {prod(shape):,}")
    for chunk in chunks:
        sides = zip(chunk.offsets, chunk.sizes, shape, strict=True)
        if any(offset + size > side for offset, size, side in sides):
            raise ValueError(f"{key}: a part reaches beyond {shape}")
        if prod(chunk.sizes) * dtype.itemsize > chunk.length_bytes:
            raise ValueError(f"{key}: {chunk.length_bytes:,} bytes for a part of {chunk.sizes}")
    return Stored(shape, dtype, chunks)


def _chunk(folder: Path, key: str, chunk: Any, places: dict[tuple[str, tuple[int, ...]], Any]) -> Chunk:
    offsets, sizes = _numbers(chunk.offsets), _numbers(chunk.sizes)
    place = places[key, offsets]
    file, (offset, length) = place.relative_path, _numbers((place.offset, place.length))
    if Path(file).name != file or file == ".." or getattr(place, "transform_descriptors", None):
        raise ValueError(f"{key}: a part lies in {file!r}, which is no plain file of this folder")
    path = folder / file
    if not path.is_file():
        raise damaged(path, "no such file")
    if offset + length > path.stat().st_size:
        raise damaged(path, f"{path.stat().st_size:,} bytes, {offset + length:,} of them named in {METADATA}")
    return Chunk(offsets, sizes, file, offset, length)


def _numbers(values: Any) -> tuple[int, ...]:
    numbers = tuple(values)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"{numbers!r} where sizes belong")
    return numbers


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
