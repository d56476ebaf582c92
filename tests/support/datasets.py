"""Small .bin/.idx pairs, written by us and by megatron-core."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from megatron_dsmath.data.indexed.dataset import IndexedWriter

DOCUMENTS = [[5, 6, 7], [], [0], [99, 2, 3, 4]]


def write_ours(prefix: Path, documents: list[list[int]], dtype: type[np.integer] = np.int32) -> Path:
    with IndexedWriter(prefix, np.dtype(dtype)) as writer:
        for document in documents:
            writer.add_document(document)
    return prefix


def write_theirs(prefix: Path, documents: list[list[int]], dtype: type[np.integer] = np.int32) -> Path:
    from megatron.core.datasets import indexed_dataset as megatron

    builder = megatron.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_document(document, [len(document)] if document else [])
    builder.finalize(f"{prefix}.idx")
    return prefix


def files_of(prefix: Path) -> tuple[bytes, bytes]:
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()
