"""Read tensors by slice from a folder of safetensors files as Hugging Face lays it out, and write such folders."""

from __future__ import annotations

import json
import shlex
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from megatron_dsmath.errors import ConversionError
from megatron_dsmath.files.atomic_files import sync, write_text
from megatron_dsmath.model.parameters import Shape

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
SHARD_BYTES = 5_000_000_000  # the limit of Hugging Face's own writer


class StoredTensor(NamedTuple):
    """A tensor in a file."""

    file: Path
    shape: Shape
    dtype: torch.dtype


class SafetensorsFiles:
    """The tensors of `model.safetensors`, or of the files in `model.safetensors.index.json`.

    Opening reads only the headers. Raises ConversionError for a file that is missing, damaged, outside the folder, of
    another format (pickles), or whose tensors differ from the index.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tensors: dict[str, StoredTensor] = {}
        self._open_files = ExitStack()
        self._handles: dict[Path, Any] = {}
        index = self._index()
        for file in [folder / SINGLE] if index is None else sorted({inside(folder, name) for name in index.values()}):
            self._open(file)
        if index is not None:
            self._compare(index)

    def read(self, name: str, part: tuple[slice, ...]) -> torch.Tensor:
        """Read a part of a tensor in its stored type."""
        stored = self.tensors[name]
        tensor: torch.Tensor = self._handles[stored.file].get_slice(name)[part]
        return tensor

    def close(self) -> None:
        """Close the files."""
        self._handles.clear()
        self._open_files.close()

    def _index(self) -> dict[str, str] | None:
        if (self.folder / SINGLE).exists():  # as transformers does
            inside(self.folder, SINGLE)
            return None
        if not (self.folder / INDEX).exists():
            raise self._no_weights()
        index = read_json(inside(self.folder, INDEX)).get("weight_map")
        if isinstance(index, dict) and index and all(isinstance(name, str) for name in index.values()):
            return index
        raise ConversionError(
            "the index of the weights does not list files",
            where=f"{self.folder / INDEX}: weight_map",
            found=type(index).__name__,
            expected="a file name for each tensor",
            fix="download or copy the complete folder again",
        )

    def _open(self, file: Path) -> None:
        try:
            handle = self._open_files.enter_context(safe_open(file, framework="pt"))
            for name in handle.keys():  # noqa: SIM118 - no dictionary
                tensor = handle.get_slice(name)
                dtype = _dtype(file, name, tensor.get_dtype())
                self.tensors[name] = StoredTensor(file, tuple(tensor.get_shape()), dtype)
        except (SafetensorError, OSError) as error:
            raise ConversionError(
                "a safetensors file cannot be read",
                where=file,
                found=error,
                expected="a complete file in the safetensors format",
                fix="download or copy the file again: it is missing, truncated or has another format",
            ) from error
        self._handles[file] = handle

    def _compare(self, index: Mapping[str, str]) -> None:
        for name in [*index, *self.tensors]:
            indexed = index.get(name)
            stored = self.tensors.get(name)
            if indexed is None or stored is None or stored.file.name != indexed:
                raise ConversionError(
                    "the index and the files of the weights disagree",
                    where=f"{self.folder / INDEX}: {name}",
                    found=f"in {stored.file.name}" if stored else "in no file",
                    expected=f"in {indexed}" if indexed else "also in the index",
                    fix="download or copy the complete folder again: its files belong to different models",
                )

    def _no_weights(self) -> ConversionError:
        pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in self.folder.glob(pattern))
        path = repr(str(self.folder.absolute()))
        program = f"from transformers import AutoModelForCausalLM as M; M.from_pretrained({path}, dtype='auto')"
        command = shlex.join(["python", "-c", f"{program}.save_pretrained({path})"])
        return ConversionError(
            "the weights are not in safetensors files",
            where=self.folder,
            found=f"pickles, which can run any code when they are read: {pickles[0]}" if pickles else "no weights",
            expected=f"{SINGLE}, or {INDEX} and its files",
            fix=f"download the model's safetensors files or, if you trust these files, convert them: {command}"
            if pickles
            else "give the folder with the weights",
        )


def write_safetensors(
    folder: Path,
    tensors: Mapping[str, tuple[Shape, torch.dtype]],
    read: Callable[[str], torch.Tensor | Iterator[torch.Tensor]],
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `tensors` into `folder` in files of at most `shard_bytes`, with one tensor in memory at a time.

    `read` returns a tensor by name, whole or as an iterator over blocks of its rows. The bytes equal those of the
    safetensors library for the same tensors.
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
        write_text(folder / INDEX, json.dumps(index, indent=2) + "\n")


def size_bytes(shape: Shape, dtype: torch.dtype) -> int:
    """The size of a tensor in bytes."""
    return torch.Size(shape).numel() * dtype.itemsize


def inside(folder: Path, name: str) -> Path:
    """Return `folder`/`name`. Raises ConversionError if the path or a link leads outside the folder."""
    path = folder / name
    if Path(name).name == name and path.resolve().is_relative_to(folder.resolve()):
        return path
    raise ConversionError(
        "a file of the folder is outside it",
        where=folder,
        found=f"{name}, which is {path.resolve()}",
        expected="files in the folder itself",
        fix="copy the folder with its links resolved (cp -rL; `hf download MODEL --local-dir FOLDER` does so)",
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file. Raises ConversionError if the file is missing or contains anything else."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _not_json(path, error) from error
    if not isinstance(content, dict):
        raise _not_json(path, f"a JSON {type(content).__name__}")
    return content


def _dtype(file: Path, name: str, code: str) -> torch.dtype:
    if code in DTYPES:
        return DTYPES[code]
    raise ConversionError(
        "a tensor has a type that is not supported",
        where=f"{file}: {name}",
        found=code,
        expected=f"one of {', '.join(DTYPES)}",
        fix="use the unquantized weights",
    )


def _shards(tensors: Mapping[str, tuple[Shape, torch.dtype]], shard_bytes: int) -> Iterator[list[str]]:
    shard: list[str] = []
    free_bytes = shard_bytes
    for name, tensor in tensors.items():
        if shard and size_bytes(*tensor) > free_bytes:
            yield shard
            shard, free_bytes = [], shard_bytes
        shard.append(name)
        free_bytes -= size_bytes(*tensor)
    yield shard


def _write_file(
    path: Path,
    tensors: Mapping[str, tuple[Shape, torch.dtype]],
    read: Callable[[str], torch.Tensor | Iterator[torch.Tensor]],
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


def _append(file: BinaryIO, content: torch.Tensor | Iterator[torch.Tensor], shape: Shape, dtype: torch.dtype) -> None:
    rows = 0
    for block in (content,) if isinstance(content, torch.Tensor) else content:
        assert (tuple(block.shape[1:]), block.dtype) == (shape[1:], dtype)
        file.write(block.contiguous().view(torch.uint8).numpy().data)
        rows += block.shape[0]
    assert rows == shape[0]


def _not_json(path: Path, found: object) -> ConversionError:
    return ConversionError(
        "a file of the folder is missing or not JSON",
        where=path,
        found=found,
        expected="a JSON object",
        fix="download or copy the file again, or give another folder",
    )
