from __future__ import annotations

import pickle
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as torch_checkpoint
from torch.distributed.checkpoint.metadata import Metadata

from megatron_dsmath.errors import CheckpointError
from megatron_dsmath.parallel.shard_reader import METADATA, ShardReader, check_metadata

STACKED = torch.arange(24.0).reshape(2, 3, 4)  # two layers along the first axis, as megatron-core stacks them
NORM = torch.tensor([0.5, -1.5, 2.0])
KEY = "decoder.layers.mlp.linear_fc2.weight"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder written by torch only."""
    state = {KEY: STACKED, "decoder.final_layernorm.weight": NORM, "optimizer.state.step": torch.ones(1)}
    torch_checkpoint.save(state, checkpoint_id=tmp_path / "shards", no_dist=True)
    return tmp_path / "shards"


def edit(folder: Path, change: Callable[[Metadata], Any]) -> None:
    """Change `.metadata` as an attacker could."""
    path = folder / METADATA
    metadata = pickle.loads(path.read_bytes())
    change(metadata)
    path.write_bytes(pickle.dumps(metadata))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        reader = ShardReader(folder)
        for name in reader.shapes:
            reader.read(name)
    return caught.value.text()


def test_stacked_layers_are_read_one_by_one(folder: Path) -> None:
    reader = ShardReader(folder)
    assert reader.shapes == {
        "decoder.layers.0.mlp.linear_fc2.weight": (3, 4),
        "decoder.layers.1.mlp.linear_fc2.weight": (3, 4),
        "decoder.final_layernorm.weight": (3,),
    }
    for layer in range(2):
        assert torch.equal(reader.read(f"decoder.layers.{layer}.mlp.linear_fc2.weight"), STACKED[layer])
    assert torch.equal(reader.read("decoder.final_layernorm.weight"), NORM)


@pytest.mark.parametrize("rows", [[0], [2], [0, 2], [1, 2], []])
def test_rows_are_read_alone(folder: Path, rows: list[int]) -> None:
    reader, indices = ShardReader(folder), torch.tensor(rows, dtype=torch.int64)
    for layer in range(2):
        read = reader.read(f"decoder.layers.{layer}.mlp.linear_fc2.weight", indices)
        assert torch.equal(read, STACKED[layer][rows])
    assert torch.equal(reader.read("decoder.final_layernorm.weight", indices), NORM[rows])


def test_a_tensor_that_is_not_contiguous_is_read(tmp_path: Path) -> None:
    """Here `torch.save` stores strides, and values in another order."""
    state = {"output_layer.weight": torch.arange(12.0).reshape(3, 4).t()}
    torch_checkpoint.save(state, checkpoint_id=tmp_path, no_dist=True)
    read = ShardReader(tmp_path).read("output_layer.weight", torch.tensor([1, 3]))
    assert read.tolist() == [[1.0, 5.0, 9.0], [3.0, 7.0, 11.0]]


class Exploit:
    """Calls `function` when its pickle is loaded."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.fault(
    "S12",
    injected="five pickles that run a program as `.metadata`",
    where="reading weights (export, import)",
    holds="refused by name, and the program does not run",
)
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (Path.touch, "pathlib.Path.touch"),
        (__import__("os").system, "posix.system"),
        (eval, "builtins.eval"),
        (torch.load, "torch.serialization.load"),
        (torch.hub.load, "torch.hub.load"),
    ],
)
def test_metadata_that_runs_code_is_refused_and_does_not_run(
    folder: Path, tmp_path: Path, function: Callable[..., Any], name: str
) -> None:
    target = tmp_path / "ran"
    arguments = (target,) if function is Path.touch else (f"touch {target}",)
    edit(folder, lambda metadata: setattr(metadata, "planner_data", Exploit(function, *arguments)))
    text = refusal(folder)
    assert name in text and METADATA in text
    assert not target.exists()
    with pytest.raises(CheckpointError, match=re.escape(name)):
        check_metadata(folder)


@pytest.mark.fault(
    "S12",
    injected="a pickle instead of a shard",
    where="reading weights",
    holds="refused, and the program does not run",
)
def test_a_tensor_file_that_runs_code_is_refused_and_does_not_run(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "ran"
    file = folder / "__0_0.distcp"
    pickled = tmp_path / "exploit"
    torch.save(Exploit(__import__("os").system, f"touch {target}"), pickled)
    content = pickled.read_bytes()
    file.write_bytes(content)

    def point_at_it(metadata: Metadata) -> None:
        for location in metadata.storage_data.values():
            location.offset, location.length = 0, len(content)

    edit(folder, point_at_it)
    assert "__0_0.distcp" in refusal(folder)
    assert not target.exists()


@pytest.mark.parametrize("content", [b"", b"\x80\x04", b"\x80\x04N.", b"\x80\x04]\x94.", b"garbage"])
def test_damaged_metadata_is_refused(folder: Path, content: bytes) -> None:
    (folder / METADATA).write_bytes(content)
    assert METADATA in refusal(folder)


def test_missing_metadata_is_refused(folder: Path) -> None:
    (folder / METADATA).unlink()
    assert "No such file" in refusal(folder)


def test_a_missing_or_truncated_tensor_file_is_refused(folder: Path) -> None:
    file = folder / "__0_0.distcp"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    assert "__0_0.distcp" in refusal(folder)
    file.unlink()
    assert "no such file" in refusal(folder)


@pytest.mark.fault(
    "S14",
    injected="a shard's name that leads out of the checkpoint",
    where="reading weights",
    holds="refused",
)
def test_a_path_outside_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "__0_0.distcp", tmp_path / "elsewhere")

    def lead_out(metadata: Metadata) -> None:
        for location in metadata.storage_data.values():
            location.relative_path = "../elsewhere"

    edit(folder, lead_out)
    assert "not a plain file" in refusal(folder)


@pytest.mark.parametrize("size", [(1 << 60, 3, 4), (2, 3, 1 << 60), (-2, 3, 4), (2, 3)])
def test_a_size_beyond_the_stored_bytes_is_refused_before_memory_is_allocated(
    folder: Path, size: tuple[int, ...]
) -> None:
    def enlarge(metadata: Metadata) -> None:
        entry: Any = metadata.state_dict_metadata[KEY]
        entry.size = torch.Size(size)

    edit(folder, enlarge)
    assert METADATA in refusal(folder)


def test_a_chunk_with_more_values_than_bytes_is_refused(folder: Path) -> None:
    def enlarge(metadata: Metadata) -> None:
        entry: Any = metadata.state_dict_metadata[KEY]
        entry.size = entry.chunks[0].sizes = torch.Size((2, 3, 1 << 40))

    edit(folder, enlarge)
    assert "bytes for a chunk" in refusal(folder)


def test_a_chunk_of_another_tensor_is_refused(folder: Path) -> None:
    def exchange(metadata: Metadata) -> None:
        locations = {index.fqn: location for index, location in metadata.storage_data.items()}
        first, second = locations[KEY], locations["decoder.final_layernorm.weight"]
        first.offset, second.offset = second.offset, first.offset
        first.length, second.length = second.length, first.length

    edit(folder, exchange)
    assert "not what .metadata describes" in refusal(folder)


def test_values_in_no_chunk_are_nan(folder: Path) -> None:
    """Two overlapping chunks with the right total leave a gap, which must not look like a weight."""

    def overlap(metadata: Metadata) -> None:
        entry: Any = metadata.state_dict_metadata[KEY]
        entry.size = torch.Size((2, 3, 8))
        entry.chunks = entry.chunks * 2

    edit(folder, overlap)
    assert ShardReader(folder).read("decoder.layers.0.mlp.linear_fc2.weight")[:, 4:].isnan().all()
