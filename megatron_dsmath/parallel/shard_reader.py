"""Read single tensors out of megatron-core's sharded format in one process, and run no program that is in it.

A `torch_dist` folder is a pickle `.metadata`, which says what is where, and `.distcp` files of tensors, each as
`torch.save` writes it. Unpickling `.metadata` the usual way runs whatever it names (pytorch issue 189308). Here it may
name a few classes only, and meets stand-ins without behaviour in their place.
"""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import torch

from megatron_dsmath.errors import CheckpointError

METADATA = ".metadata"
# megatron-core writes the first; NeMo and wrapped models put a name before each key.
_PREFIXES = ("", "model.", "module.")
_MODEL_PARTS = ("embedding.", "decoder.", "output_layer.")
_LAYERS = "decoder.layers."


class _Record:
    """Stands in for a metadata class: what was pickled, without behaviour."""

    def __init__(self, *fields: Any) -> None:
        self.fields = fields

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)
        else:
            self.fields = state


_RECORD_MODULES = {
    "torch.distributed.checkpoint.metadata",
    "torch.distributed.checkpoint.planner",
    "torch.distributed.checkpoint.filesystem",
    "torch.distributed._shard.sharded_tensor.metadata",  # until torch 2.2
}
_RECORDS = {("torch.serialization", "_get_layout"), ("pathlib", "PosixPath"), ("pathlib._local", "PosixPath")}


class _MetadataUnpickler(pickle.Unpickler):
    """Unpickles what describes tensors, and nothing else."""

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
        raise _ForeignGlobalError(f"{module}.{name}")


class _ForeignGlobalError(Exception):
    """A pickle names something that is no part of a checkpoint's description."""


class _Chunk(NamedTuple):
    """A part of a tensor and where its bytes are."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    file: str
    offset_bytes: int
    length_bytes: int


class _Stored(NamedTuple):
    shape: tuple[int, ...]
    dtype: torch.dtype
    chunks: tuple[_Chunk, ...]


def check_metadata(folder: Path) -> None:
    """Raise CheckpointError when `.metadata` is damaged or names anything but a description of tensors.

    To be called before megatron-core reads the folder, which would run it.
    """
    _read_metadata(folder / METADATA)


class ShardReader:
    """The model's tensors in a `torch_dist` folder by megatron-core's names, one entry a layer, whatever the layout.

    megatron-core stacks the layers along a new first axis where they are alike; here they have their numbers back:
    `decoder.layers.3.mlp.linear_fc2.weight`. The optimizer's state and other objects are left out.
    """

    def __init__(self, folder: Path) -> None:
        """Read the description of the folder. Raises CheckpointError."""
        self.folder = folder
        path = folder / METADATA
        try:
            self._tensors = _model_tensors(_read_metadata(path))
        except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
            raise _damaged(path, error) from error
        self.shapes: dict[str, tuple[int, ...]] = {}
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

        Raises CheckpointError when parts are missing, damaged, or do not fit together.
        """
        stored, layer = self._find(name)
        first = () if layer is None else (layer,)
        chunks = [chunk for chunk in stored.chunks if layer is None or chunk.offsets[0] <= layer < _end(chunk)]
        shape = self.shapes[name]
        covered = sum(torch.Size(chunk.sizes[len(first) :]).numel() for chunk in chunks)
        if covered != torch.Size(shape).numel():
            raise self._broken(name, f"{covered:,} values in its parts", f"{torch.Size(shape).numel():,} values")
        tensors = [self._load(name, stored, chunk) for chunk in chunks]
        whole = torch.empty(shape, dtype=stored.dtype)
        for chunk, tensor in zip(chunks, tensors, strict=True):
            inner = tensor if layer is None else tensor[layer - chunk.offsets[0]]
            sides = zip(chunk.offsets[len(first) :], chunk.sizes[len(first) :], strict=True)
            whole[tuple(slice(offset, offset + size) for offset, size in sides)] = inner
        return whole

    def _find(self, name: str) -> tuple[_Stored, int | None]:
        if name in self._tensors:
            return self._tensors[name], None
        layer, rest = name.removeprefix(_LAYERS).split(".", 1)
        return self._tensors[_LAYERS + rest], int(layer)

    def _load(self, name: str, stored: _Stored, chunk: _Chunk) -> torch.Tensor:
        path = self.folder / chunk.file
        try:
            with path.open("rb") as file:
                file.seek(chunk.offset_bytes)
                data = file.read(chunk.length_bytes)
            tensor = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load raises a dozen kinds on damaged bytes
            raise _damaged(path, error) from error
        if not isinstance(tensor, torch.Tensor):
            raise self._broken(name, f"a {type(tensor).__name__} in {path}", "a tensor")
        if tensor.dtype != stored.dtype or tuple(tensor.shape) != chunk.sizes:
            raise self._broken(name, f"{tensor.dtype} {list(tensor.shape)}", f"{stored.dtype} {list(chunk.sizes)}")
        return tensor

    def _broken(self, name: str, found: str, expected: str) -> CheckpointError:
        return CheckpointError(
            "the parts of a tensor do not fit together",
            where=f"{self.folder}: {name}",
            found=found,
            expected=expected,
            fix="get the folder whole again, or use another checkpoint",
        )


def _read_metadata(path: Path) -> _Record:
    try:
        metadata = _MetadataUnpickler(io.BytesIO(path.read_bytes())).load()
    except _ForeignGlobalError as error:
        raise CheckpointError(
            "the checkpoint's description wants to run a program",
            where=path,
            found=f"the pickle names {error}",
            expected="only what torch.distributed.checkpoint describes tensors with",
            fix="do not use this checkpoint, and find out who changed it",
        ) from None
    except Exception as error:  # a damaged pickle raises anything
        raise _damaged(path, error) from error
    if not isinstance(metadata, _Record):
        raise _damaged(path, f"a {type(metadata).__name__}")
    return metadata


def _model_tensors(metadata: Any) -> dict[str, _Stored]:
    places = {
        (index.fqn, _numbers(index.offset)): info for index, info in metadata.storage_data.items() if _offset(index)
    }
    prefix = next((p for p in _PREFIXES if any(_is_of_model(key, p) for key in metadata.state_dict_metadata)), "")
    tensors = {}
    for key, entry in metadata.state_dict_metadata.items():
        if not _is_of_model(key, prefix) or not hasattr(entry, "chunks"):
            continue
        chunks = tuple(_chunk(key, chunk, places) for chunk in entry.chunks)
        tensors[key.removeprefix(prefix)] = _Stored(_numbers(entry.size), _dtype(entry.properties), chunks)
    return tensors


def _chunk(key: str, chunk: Any, places: dict[tuple[str, tuple[int, ...]], Any]) -> _Chunk:
    offsets, sizes = _numbers(chunk.offsets), _numbers(chunk.sizes)
    place = places[key, offsets]
    file, (offset, length) = place.relative_path, _numbers((place.offset, place.length))
    if Path(file).name != file or file == ".." or getattr(place, "transform_descriptors", None):
        raise ValueError(f"a part of {key} is in {file!r}, which is no plain file of this folder")
    return _Chunk(offsets, sizes, file, offset, length)


def _offset(index: Any) -> bool:
    return getattr(index, "offset", None) is not None  # None: not a tensor


def _is_of_model(key: str, prefix: str) -> bool:
    return key.startswith(tuple(prefix + part for part in _MODEL_PARTS))


def _dtype(properties: Any) -> torch.dtype:
    dtype = properties.fields[0]  # TensorProperties pickles itself as a tuple
    if not isinstance(dtype, torch.dtype):
        raise TypeError(f"a {type(dtype).__name__} where a dtype belongs")
    return dtype


def _numbers(values: Any) -> tuple[int, ...]:
    numbers = tuple(values)
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise ValueError(f"{numbers!r} where sizes belong")
    return numbers


def _end(chunk: _Chunk) -> int:
    return chunk.offsets[0] + chunk.sizes[0]


def _damaged(path: Path, found: object) -> CheckpointError:
    return CheckpointError(
        "a file of the checkpoint's shards is missing or damaged",
        where=path,
        found=found,
        expected="what megatron-core's torch_dist format writes",
        fix="get the folder whole again, or use another checkpoint",
    )
