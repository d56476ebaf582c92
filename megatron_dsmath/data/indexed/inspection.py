"""Statistics of a dataset (`inspect`), and a check that it is complete and within its vocabulary (`verify`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_dsmath.data.indexed.dataset import IndexedDataset, bin_path, idx_path, require_files
from megatron_dsmath.data.indexed.index_file import row_ranges
from megatron_dsmath.data.indexed.sidecar import Metadata, read_sidecar, sidecar_path
from megatron_dsmath.errors import IndexedDatasetError
from megatron_dsmath.files.atomic_files import file_sha256


@dataclass(frozen=True)
class Inspection:
    """Statistics of a dataset. Lengths are in tokens; `sidecar` is None without a PREFIX.json."""

    prefix: Path
    dtype: str
    documents: int
    empty_documents: int
    sequences: int
    tokens: int
    shortest_sequence: int
    longest_sequence: int
    bin_bytes: int
    idx_bytes: int
    sidecar: Metadata | None


@dataclass(frozen=True)
class Verification:
    """The checks that were made, and every fault found."""

    prefix: Path
    checks: tuple[str, ...]
    faults: tuple[IndexedDatasetError, ...]

    @property
    def holds(self) -> bool:
        """Whether no fault was found."""
        return not self.faults


def inspect(prefix: str | Path) -> Inspection:
    """Collect the statistics of the dataset at `prefix`. Raises IndexedDatasetError if it cannot be opened."""
    dataset = IndexedDataset(prefix)
    lengths, starts, ends = dataset.lengths, dataset.document_indices[:-1], dataset.document_indices[1:]
    return Inspection(
        prefix=dataset.prefix,
        dtype=str(dataset.dtype),
        documents=dataset.document_count,
        empty_documents=sum(int((starts[rows] == ends[rows]).sum()) for rows in row_ranges(dataset.document_count)),
        sequences=len(dataset),
        tokens=dataset.token_count,
        shortest_sequence=int(lengths.min()) if len(lengths) else 0,
        longest_sequence=int(lengths.max()) if len(lengths) else 0,
        bin_bytes=bin_path(prefix).stat().st_size,
        idx_bytes=idx_path(prefix).stat().st_size,
        sidecar=read_sidecar(prefix),
    )


def verify(prefix: str | Path, vocabulary_size: int | None = None) -> Verification:
    """Check the dataset at `prefix`: its index, its token ids, and the counts and hashes of its sidecar, if any.

    Ids must be below `vocabulary_size`; the default is that of the sidecar. Raises IndexedDatasetError if there is no
    dataset or the sidecar cannot be read.
    """
    sidecar = read_sidecar(prefix) or {}
    require_files(prefix)
    checks = ["the index describes the .bin"]
    faults: list[IndexedDatasetError] = []
    try:
        dataset = IndexedDataset(prefix)
    except IndexedDatasetError as fault:
        return Verification(Path(prefix), tuple(checks), (fault,))
    limit = vocabulary_size if vocabulary_size is not None else sidecar.get("vocabulary_size")
    if isinstance(limit, int):
        checks.append(f"every id is below {limit:,}")
        faults += _ids_outside(dataset, limit)
    if sidecar:
        checks.append("the counts and hashes are those of the sidecar")
        faults += _differences(dataset, sidecar)
    return Verification(dataset.prefix, tuple(checks), tuple(faults))


def _ids_outside(dataset: IndexedDataset, limit: int) -> Iterator[IndexedDatasetError]:
    """The first id that is negative or not below `limit`, if any."""
    for rows in row_ranges(dataset.token_count):
        tokens = dataset.tokens[rows]
        outside = (tokens < 0) | (tokens >= limit)
        if outside.any():
            token = rows.start + int(np.argmax(outside))
            sequence = np.searchsorted(dataset.offsets, token * dataset.dtype.itemsize, side="right") - 1
            document = int(np.searchsorted(dataset.document_indices, sequence, side="right")) - 1
            yield IndexedDatasetError(
                "a token id is not in the vocabulary",
                where=f"{bin_path(dataset.prefix)}, token {token:,}, document {document:,}",
                found=int(dataset.tokens[token]),
                expected=f"0 to {limit - 1:,}",
                fix="the dataset was made with another tokenizer, or is damaged: tokenize again",
            )
            return


def _differences(dataset: IndexedDataset, sidecar: Metadata) -> list[IndexedDatasetError]:
    """Every count and hash that differs between the files and their sidecar."""
    hashes = sidecar.get("sha256")
    expected = sidecar | (hashes if isinstance(hashes, dict) else {})
    found = {
        "documents": dataset.document_count,
        "sequences": len(dataset),
        "tokens": dataset.token_count,
        "dtype": str(dataset.dtype),
        "bin": file_sha256(bin_path(dataset.prefix)),
        "idx": file_sha256(idx_path(dataset.prefix)),
    }
    return [
        IndexedDatasetError(
            f"the sidecar does not match the {'.' + name if name in ('bin', 'idx') else name}",
            where=sidecar_path(dataset.prefix),
            found=value,
            expected=expected.get(name),
            fix="the files were changed after they were written: copy them again, or tokenize again",
        )
        for name, value in found.items()
        if value != expected.get(name)
    ]
