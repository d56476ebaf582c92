"""Files that are no longer what was saved: found before the first step, whatever the file and the bit."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from megatron_dsmath.checkpoint import store
from megatron_dsmath.checkpoint.manifest import MANIFEST
from megatron_dsmath.errors import CheckpointError
from tests.faults.runs import STEPS, Tally

FILES = {
    "shards": "shards/__1_0.distcp",
    "description of the shards": "shards/.metadata",
    "common state": "shards/common.pt",
    "format": "shards/metadata.json",
    "tokenizer": "tokenizer/tokenizer.json",
    "tokenizer's settings": "tokenizer/tokenizer_config.json",
    "manifest": MANIFEST,
}


@pytest.fixture(scope="module")
def checkpoint(undisturbed_run: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the last one of a run."""
    source = undisturbed_run("DP2") / "checkpoints" / f"step_{STEPS}"
    return Path(shutil.copytree(source, tmp_path_factory.mktemp("damage") / source.name))


def truncated(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.randrange(len(content))]


def flipped(content: bytes, draw: random.Random) -> bytes:
    place = draw.randrange(len(content))
    return content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :]


@pytest.mark.fault(
    "R6",
    injected="100 random truncations and 100 random bit flips of each kind of file in a checkpoint (10 in CI)",
    where="shards, their description, common state, format, tokenizer, manifest",
    holds="the check before the first step finds each, and its error names the file",
)
@pytest.mark.parametrize("times", [10, pytest.param(100, marks=pytest.mark.long)])
@pytest.mark.parametrize("damage", [truncated, flipped], ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("file", FILES)
def test_damage_anywhere_in_a_file_is_found(
    file: str,
    damage: Callable[[bytes, random.Random], bytes],
    times: int,
    checkpoint: Path,
    tally: Tally,
) -> None:
    path, draw = checkpoint / FILES[file], random.Random(f"{file} {damage.__name__}")
    saved, unnoticed = path.read_bytes(), []
    try:
        for _ in range(times):
            tally.injected += 1
            path.write_bytes(damage(saved, draw))
            try:
                store.verify(checkpoint)
            except CheckpointError as error:
                tally.survived += 1
                assert path.name in error.text()
            else:
                unnoticed.append(path.read_bytes())
    finally:
        path.write_bytes(saved)
    tally.silent_corruptions += len(unnoticed)
    assert [_difference(saved, content) for content in unnoticed] == []
    store.verify(checkpoint)


def _difference(saved: bytes, content: bytes) -> tuple[bytes, bytes]:
    place = next(place for place, (old, new) in enumerate(zip(saved, content, strict=False)) if old != new)
    return saved[place - 30 : place + 10], content[place - 30 : place + 10]
