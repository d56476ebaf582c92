"""Megatron's indexed dataset: PREFIX.bin contains the tokens, PREFIX.idx the positions of sequences and documents.

The files are byte for byte those of `megatron.core.datasets.indexed_dataset`; see docs/data_format.md.
"""

from __future__ import annotations

import json
import mmap
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.indexed.index_file import CODES, map_file, read_index, row_ranges, validate_index, write_index
from megatron_dsmath.data.indexed.sidecar import Metadata, sidecar_path
from megatron_dsmath.errors import IndexedDatasetError
from megatron_dsmath.files.atomic_files import AtomicFiles, PartialFile

Tokens = npt.NDArray[np.integer]


def dtype_for(vocabulary_size: int) -> np.dtype[np.integer]:
    """Megatron's dtype for a vocabulary: uint16 below 65,500 entries, else int32 (`DType.optimal_dtype`)."""
    return np.dtype(np.uint16 if vocabulary_size < 65_500 else np.int32)


def bin_path(prefix: str | Path) -> Path:
    """The path of the tokens of `prefix`."""
    return Path(f"{prefix}.bin")


def idx_path(prefix: str | Path) -> Path:
    """The path of the index of `prefix`."""
    return Path(f"{prefix}.idx")


class IndexedDataset:
    """A memory-mapped .bin/.idx pair.

    `lengths`: int32 [sequences], in tokens. `offsets`: int64 [sequences], in bytes of the .bin. `document_indices`:
    int64 [documents + 1], the first sequence of each document, then the number of sequences (a document may have
    none). `tokens`: dtype [token_count], the whole .bin. All are read-only views of the files; nothing is copied.
    """

    def __init__(self, prefix: str | Path, *, validate: bool = True) -> None:
        """Open PREFIX.bin and PREFIX.idx and validate the whole index, or with `validate=False` its header and size.

        Raises IndexedDatasetError with the file and its fault.
        """
        require_files(prefix)
        self.prefix = Path(prefix)
        index, self._content = read_index(idx_path(prefix)), map_file(bin_path(prefix))
        if validate:
            validate_index(idx_path(prefix), index, len(self._content))
        self.dtype, self.lengths, self.offsets = index.dtype, index.lengths, index.offsets
        self.document_indices = index.document_indices
        self.tokens: Tokens = np.frombuffer(self._content, self.dtype, len(self._content) // self.dtype.itemsize)

    @property
    def document_count(self) -> int:
        """The number of documents, including empty ones."""
        return len(self.document_indices) - 1

    @property
    def token_count(self) -> int:
        """The number of tokens, including end-of-document tokens."""
        return len(self.tokens)

    def __len__(self) -> int:
        """The number of sequences."""
        return len(self.lengths)

    def __getitem__(self, sequence: int) -> Tokens:
        """The tokens of one sequence: dtype [lengths[sequence]], a view of the file."""
        first = int(self.offsets[sequence]) // self.dtype.itemsize
        return self.tokens[first : first + int(self.lengths[sequence])]

    def document(self, number: int) -> Tokens:
        """The tokens of one document, 0 <= number < document_count: dtype [tokens], a view of the file."""
        first, end = (self._first_token(int(sequence)) for sequence in self.document_indices[number : number + 2])
        return self.tokens[first:end]

    def _first_token(self, sequence: int) -> int:
        return int(self.offsets[sequence]) // self.dtype.itemsize if sequence < len(self) else self.token_count

    def expect_random_reads(self) -> None:
        """Turn off read-ahead for `tokens`, which reads far more than scattered samples need."""
        if isinstance(self._content, mmap.mmap):  # an empty .bin is not mapped
            self._content.madvise(mmap.MADV_RANDOM)

    def __reduce__(self) -> tuple[type[IndexedDataset], tuple[Path]]:
        """Pickle only the prefix: pickling a memory map would copy the corpus."""
        return (IndexedDataset, (self.prefix,))


class IndexedWriter:
    """Writes PREFIX.bin, PREFIX.json and PREFIX.idx, which appear together when the `with` block ends without an error.

    `metadata` is written into PREFIX.json, the sidecar, after the counts and hashes.
    """

    def __init__(
        self,
        prefix: str | Path,
        dtype: np.dtype[np.integer],
        extra_files: Sequence[Path] = (),
        resume_from: Mapping[Path, PartialFile] | None = None,
    ) -> None:
        """Open the files of a dataset with tokens of `dtype`, one of the integer dtypes of the format.

        `extra_files` belong to the dataset: the caller writes them through the attribute of this name, and they appear
        with it. `resume_from` describes the unfinished files of a killed writer; then give their documents to
        `restore_documents`. Raises OutputError if the folder is not writable.
        """
        self.dtype = np.dtype(dtype)
        if self.dtype not in CODES:
            raise ValueError(f"{self.dtype} is not a dtype of this format: {', '.join(map(str, CODES))}")
        self.token_count = 0
        self.metadata: Metadata = {}
        self._prepared = False
        self._limits = np.iinfo(self.dtype)
        self._lengths = array("i")
        self._document_indices = array("q", [0])
        self._files = AtomicFiles(
            *extra_files, bin_path(prefix), sidecar_path(prefix), idx_path(prefix), resume_from=resume_from
        )
        *self.extra_files, self.bin, self._sidecar, self._idx = self._files.files

    @property
    def document_count(self) -> int:
        """The number of documents so far, including empty ones."""
        return len(self._document_indices) - 1

    def add_document(self, tokens: Sequence[int] | Tokens) -> None:
        """Append one document as one sequence; see `add_documents`."""
        document = np.asarray(tokens)
        self.add_documents(document, np.array([document.size]))

    def add_documents(self, tokens: Tokens, lengths: npt.NDArray[np.integer]) -> None:
        """Append documents, each as one sequence. `tokens`: [sum of lengths], concatenated; `lengths`: [documents].

        As in Megatron, an empty document has no sequence. Raises IndexedDatasetError if an id does not fit the dtype,
        and OutputError if the disk is full.
        """
        if tokens.size:
            self._require_in_range(tokens)
            self.bin.write(tokens.astype(self.dtype).tobytes())
        self.restore_documents(lengths)

    def restore_documents(self, lengths: npt.NDArray[np.integer]) -> None:
        """Add documents of `lengths` [documents] to the index; the .bin already contains their tokens."""
        is_not_empty = lengths > 0
        ends = len(self._lengths) + np.cumsum(is_not_empty, dtype=np.int64)
        self._lengths.frombytes(lengths[is_not_empty].astype(np.int32).tobytes())
        self._document_indices.frombytes(ends.tobytes())
        self.token_count += int(lengths.sum())

    def add_dataset(self, dataset: IndexedDataset) -> None:
        """Append every document of `dataset`. Raises IndexedDatasetError if its dtype differs."""
        if dataset.dtype != self.dtype:
            raise IndexedDatasetError(
                "datasets with different dtypes cannot be merged",
                where=idx_path(dataset.prefix),
                found=dataset.dtype,
                expected=self.dtype,
                fix="tokenize both with the same tokenizer",
            )
        sequences_before = len(self._lengths)
        for rows in row_ranges(len(dataset)):
            self._lengths.frombytes(dataset.lengths[rows].tobytes())
        for rows in row_ranges(dataset.document_count):
            self._document_indices.frombytes((dataset.document_indices[1:][rows] + sequences_before).tobytes())
        for rows in row_ranges(dataset.token_count):
            self.bin.write(dataset.tokens[rows].tobytes())
        self.token_count += dataset.token_count

    def prepare(self) -> None:
        """Write and sync all files; then only the renames remain. Raises OutputError."""
        if not self._prepared:
            write_index(self._idx, self.dtype, self._lengths, self._document_indices)
            counts = {
                "documents": self.document_count,
                "sequences": len(self._lengths),
                "tokens": self.token_count,
                "dtype": str(self.dtype),
                "sha256": {"bin": self.bin.sha256, "idx": self._idx.sha256},
            }
            self._sidecar.write((json.dumps(counts | self.metadata, indent=2, ensure_ascii=False) + "\n").encode())
            for file in self._files.files:
                file.sync()
            self._prepared = True

    def __enter__(self) -> IndexedWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        try:
            if error is None:
                self.prepare()
                self._files.publish()
        finally:
            self._files.discard()

    def _require_in_range(self, tokens: Tokens) -> None:
        low, high = int(tokens.min()), int(tokens.max())
        if low < self._limits.min or high > self._limits.max:
            raise IndexedDatasetError(
                "a token id does not fit the dtype",
                where=f"after document {self.document_count:,}",
                found=low if low < self._limits.min else high,
                expected=f"{self._limits.min} to {self._limits.max:,} ({self.dtype})",
                fix="give the dtype of the tokenizer's vocabulary (dtype_for)",
            )


def require_files(prefix: str | Path) -> None:
    """Raise IndexedDatasetError unless PREFIX.bin and PREFIX.idx exist."""
    prefix = Path(prefix)
    missing = [path for path in (bin_path(prefix), idx_path(prefix)) if not path.is_file()]
    if not missing:
        return
    if prefix.suffix in (".bin", ".idx") and prefix.is_file():
        fix = f"give the prefix without its ending: {prefix.with_suffix('')}"
    else:
        fix = "check the prefix; a run of `dsmath data tokenize` that was stopped leaves no dataset: run it again"
    raise IndexedDatasetError(
        "no dataset at this prefix",
        where=prefix,
        found=f"{missing[0]} is missing",
        expected=f"{prefix}.bin and {prefix}.idx",
        fix=fix,
    )
