from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.checkpoint.llama import write_llama, write_moved_llama


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("hf") / "llama")


@pytest.fixture
def folder(whole: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(whole, tmp_path / "llama"))


@pytest.fixture(scope="module")
def in_parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("hf") / "parts", shard="100KB")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models to average."""
    root = tmp_path_factory.mktemp("hf")
    return [write_moved_llama(root / f"llama_{seed}", seed) for seed in range(3)]


@pytest.fixture(scope="module")
def run(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with the checkpoints of steps 9, 10 and 200."""
    from tests.checkpoint.test_to_huggingface import training_run

    root = tmp_path_factory.mktemp("runs") / "my_run"
    for step, folder in zip((9, 10, 200), folders, strict=True):
        training_run(folder, root, step)
    return root
