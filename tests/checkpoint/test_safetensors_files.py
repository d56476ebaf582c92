from __future__ import annotations

import weakref
from pathlib import Path

import pytest
import torch

from megatron_dsmath.checkpoint.safetensors_files import SafetensorsFiles, write_safetensors

TENSORS = {
    "model.norm.weight": torch.tensor([1.0, -2.0, 3.5]),
    "b": torch.arange(6, dtype=torch.bfloat16).reshape(2, 3),
    "a": torch.arange(5, dtype=torch.float16),
    "lm_head.weight": torch.arange(20.0).reshape(4, 5).t(),  # not contiguous
}
LAYOUT = {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in TENSORS.items()}


def test_bytes_equal_what_the_library_writes(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    write_safetensors(tmp_path, LAYOUT, TENSORS.__getitem__)
    theirs = tmp_path / "theirs.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, theirs, {"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == theirs.read_bytes()


def test_a_tensor_in_blocks_of_rows_gives_the_same_bytes(tmp_path: Path) -> None:
    for name, rows in {"whole": 9, "blocks": 1}.items():
        (tmp_path / name).mkdir()
        write_safetensors(tmp_path / name, LAYOUT, lambda tensor, rows=rows: iter(TENSORS[tensor].split(rows)))
    whole, blocks = (tmp_path / name / "model.safetensors" for name in ("whole", "blocks"))
    assert blocks.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize(("shard_bytes", "files"), [(114, 1), (113, 2), (24, 3), (1, 4)])
def test_each_file_has_as_many_tensors_as_fit(tmp_path: Path, shard_bytes: int, files: int) -> None:
    """12 + 12 + 10 + 80 bytes in this order; a tensor is never cut."""
    write_safetensors(tmp_path, LAYOUT, TENSORS.__getitem__, shard_bytes)
    assert len(list(tmp_path.glob("*.safetensors"))) == files
    read = SafetensorsFiles(tmp_path)
    for name, tensor in TENSORS.items():
        assert torch.equal(read.read(name, tuple(slice(None) for _ in tensor.shape)), tensor)


def test_only_one_tensor_is_in_memory_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    def read(name: str) -> torch.Tensor:
        assert [reference for reference in alive if reference() is not None] == []
        tensor = TENSORS[name].clone()
        alive.append(weakref.ref(tensor))
        return tensor

    write_safetensors(tmp_path, LAYOUT, read)
    assert len(alive) == len(TENSORS)


def test_reading_a_part_gives_that_part(tmp_path: Path) -> None:
    write_safetensors(tmp_path, LAYOUT, TENSORS.__getitem__)
    part = (slice(1, 3), slice(0, 2))
    assert torch.equal(SafetensorsFiles(tmp_path).read("lm_head.weight", part), TENSORS["lm_head.weight"][part])
