from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from megatron_dsmath.data.indexed.dataset import IndexedWriter
from megatron_dsmath.data.indexed.sidecar import Metadata, bin_sha256, read_sidecar, tokenizer_fingerprint
from megatron_dsmath.errors import IndexedDatasetError


def test_the_sidecar_contains_counts_hashes_and_metadata(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "corpus", np.dtype(np.uint16)) as writer:
        writer.add_document([1, 2])
        writer.metadata = {"vocabulary_size": 3}
    sidecar = json.loads((tmp_path / "corpus.json").read_text())
    sha256 = sidecar.pop("sha256")
    assert sidecar == {"documents": 1, "sequences": 1, "tokens": 2, "dtype": "uint16", "vocabulary_size": 3}
    for ending in ("bin", "idx"):
        run = subprocess.run(["sha256sum", tmp_path / f"corpus.{ending}"], capture_output=True, text=True, check=True)
        assert sha256[ending] == run.stdout.split()[0]


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_damaged_sidecar_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "corpus.json").write_bytes(content)
    with pytest.raises(IndexedDatasetError, match=r"corpus\.json"):
        read_sidecar(tmp_path / "corpus")


@pytest.mark.parametrize(
    "metadata", [None, {}, {"tokenizer": None, "sha256": []}, {"tokenizer": {}, "sha256": {"bin": 1}}]
)
def test_a_missing_entry_is_unknown(metadata: Metadata | None) -> None:
    assert tokenizer_fingerprint(metadata) is None
    assert bin_sha256(metadata) is None


def test_a_dataset_without_a_sidecar_has_no_metadata(tmp_path: Path) -> None:
    assert read_sidecar(tmp_path / "corpus") is None
