"""The .idx file: reads, validates and writes it. docs/data_format.md describes its layout.

Source: `_IndexReader` and `_IndexWriter` in `megatron.core.datasets.indexed_dataset`, which do not validate.
"""

from __future__ import annotations

import errno
import mmap
import resource
import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_dsmath.errors import IndexedDatasetError
from megatron_dsmath.files.atomic_files import OutputFile

MAGIC = b"MMIDIDX\x00\x00"
VERSION = 1
HEADER = struct.Struct("<9sQBQQ")  # magic, version, dtype code, sequences, documents + 1
_INTEGERS = ((1, np.uint8), (2, np.int8), (3, np.int16), (4, np.int32), (5, np.int64), (8, np.uint16))  # 6, 7: floats
DTYPES: dict[int, np.dtype[np.integer]] = {code: np.dtype(dtype) for code, dtype in _INTEGERS}
CODES = {dtype: code for code, dtype in DTYPES.items()}
ROWS_AT_ONCE = 1 << 20  # rows processed together, which bounds the memory
COPY_AGAIN = "the file is damaged: copy it again from its source, or tokenize again"


@dataclass(frozen=True)
class Index:
    """The content of an .idx. `lengths` in tokens, `offsets` in bytes, `document_indices` in sequences."""

    dtype: np.dtype[np.integer]
    lengths: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    document_indices: npt.NDArray[np.int64]


def read_index(path: Path) -> Index:
    """Map the .idx at `path` and check its header and size. Raises IndexedDatasetError."""
    content = map_file(path)
    dtype, sequences, boundaries = _read_header(path, content)
    after_lengths = HEADER.size + 4 * sequences
    after_offsets = after_lengths + 8 * sequences
    return Index(
        dtype,
        lengths=np.frombuffer(content, "<i4", sequences, HEADER.size),
        offsets=np.frombuffer(content, "<i8", sequences, after_lengths),
        document_indices=np.frombuffer(content, "<i8", boundaries, after_offsets),
    )


def validate_index(path: Path, index: Index, bin_bytes: int) -> None:
    """Check the whole `index` at `path` against a .bin of `bin_bytes`. Raises IndexedDatasetError.

    The time is proportional to the size of the index; the memory is that of `ROWS_AT_ONCE` rows.
    """
    _require_contiguous_sequences(path, index, bin_bytes)
    _require_ascending_documents(path, index)


def write_index(file: OutputFile, dtype: np.dtype[np.integer], lengths: array[int], documents: array[int]) -> None:
    """Write an .idx with the `lengths` of the sequences (int32, tokens) and the boundaries of `documents` (int64).

    The offsets follow from the lengths. Raises OutputError if the disk is full.
    """
    file.write(HEADER.pack(MAGIC, VERSION, CODES[dtype], len(lengths), len(documents)))
    all_lengths = np.frombuffer(lengths, dtype="<i4")
    for rows in row_ranges(len(lengths)):
        file.write(all_lengths[rows].tobytes())
    tokens_before = 0
    for rows in row_ranges(len(lengths)):
        ends = tokens_before + np.cumsum(all_lengths[rows], dtype=np.int64)
        file.write(((ends - all_lengths[rows]) * dtype.itemsize).astype("<i8").tobytes())
        tokens_before = int(ends[-1])
    all_documents = np.frombuffer(documents, dtype="<i8")
    for rows in row_ranges(len(documents)):
        file.write(all_documents[rows].tobytes())


def map_file(path: Path) -> mmap.mmap | bytes:
    """A read-only memory map of a file; b"" for an empty file, which cannot be mapped.

    A map keeps a file descriptor open: the limit of open files is raised, as far as the system allows, when it is
    reached. Raises IndexedDatasetError if the file cannot be mapped.
    """
    try:
        try:
            return _map(path)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            hard_limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard_limit, hard_limit))
            return _map(path)
    except OSError as error:
        is_limit = error.errno == errno.EMFILE
        raise IndexedDatasetError(
            "the file cannot be opened",
            where=path,
            found=error.strerror,
            expected="a file that can be mapped into memory",
            fix="raise the limit of open files, or merge shards: dsmath data merge" if is_limit else None,
        ) from error


def _map(path: Path) -> mmap.mmap | bytes:
    with path.open("rb") as file:
        if path.stat().st_size == 0:
            return b""
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def row_ranges(count: int) -> Iterator[slice]:
    """Slices that cover `count` rows, `ROWS_AT_ONCE` at a time."""
    return (slice(start, min(start + ROWS_AT_ONCE, count)) for start in range(0, count, ROWS_AT_ONCE))


def _read_header(path: Path, content: mmap.mmap | bytes) -> tuple[np.dtype[np.integer], int, int]:
    """The dtype of the tokens, and the numbers of sequences and document boundaries."""
    size_bytes, header = len(content), content[: HEADER.size]
    if header[: len(MAGIC)] != MAGIC:
        fix = "give the prefix of a .bin/.idx pair"
        raise _index_error("the file is not an index of tokens", path, repr(header[: len(MAGIC)]), repr(MAGIC), fix)
    if len(header) < HEADER.size:
        raise _index_error("the index is truncated", path, f"{size_bytes} bytes", f"at least {HEADER.size}")
    _, version, code, sequences, boundaries = HEADER.unpack(header)
    if version != VERSION:
        raise _index_error("the version of the index is not supported", path, version, VERSION, "tokenize again")
    if code not in DTYPES:
        known = ", ".join(f"{code} ({dtype})" for code, dtype in DTYPES.items())
        raise _index_error("the dtype of the index is not an integer", path, f"dtype code {code}", known)
    expected_bytes = HEADER.size + 12 * sequences + 8 * boundaries
    if size_bytes != expected_bytes:
        what = "the index is truncated" if size_bytes < expected_bytes else "the index has too many bytes"
        counts = f"{sequences:,} sequences and {boundaries:,} document boundaries"
        raise _index_error(what, path, f"{size_bytes:,} bytes", f"{expected_bytes:,} bytes for {counts}")
    if boundaries == 0:
        raise _index_error("the index has no document boundaries", path, 0, "at least 1")
    return DTYPES[code], sequences, boundaries


def _require_contiguous_sequences(path: Path, index: Index, bin_bytes: int) -> None:
    """Check that sequences follow each other without gaps, from 0 to the end of the .bin."""
    for rows in row_ranges(len(index.lengths)):
        negative = index.lengths[rows] < 0
        if negative.any():
            row = rows.start + int(np.argmax(negative))
            found = f"{index.lengths[row]} at sequence {row:,}"
            raise _index_error("a sequence has a negative length", path, found, "0 tokens or more")
    expected_bytes = int(index.lengths.sum(dtype=np.int64)) * index.dtype.itemsize
    if bin_bytes != expected_bytes:
        what, bin_ = "the size of the .bin does not match the index", path.with_name(f"{path.stem}.bin")
        raise _index_error(what, bin_, f"{bin_bytes:,} bytes", f"{expected_bytes:,} bytes, the sum in {path.name}")
    next_offset = 0
    for rows in row_ranges(len(index.lengths)):
        ends = next_offset + np.cumsum(index.lengths[rows], dtype=np.int64) * index.dtype.itemsize
        starts = np.concatenate(([next_offset], ends[:-1]))
        misplaced = index.offsets[rows] != starts
        if misplaced.any():
            row = int(np.argmax(misplaced))
            found = f"byte {index.offsets[rows][row]:,} for sequence {rows.start + row:,}"
            what = "a sequence does not begin where the previous one ends"
            raise _index_error(what, path, found, f"byte {starts[row]:,}")
        next_offset = int(ends[-1])


def _require_ascending_documents(path: Path, index: Index) -> None:
    """Check that document boundaries ascend from 0 to the number of sequences."""
    boundaries, sequences = index.document_indices, len(index.lengths)
    for which, found, expected in (("first", boundaries[0], 0), ("last", boundaries[-1], sequences)):
        if found != expected:
            what = f"the {which} document boundary is wrong"
            raise _index_error(what, path, f"sequence {found:,}", f"sequence {expected:,}")
    for rows in row_ranges(len(boundaries) - 1):
        descends = boundaries[rows] > boundaries[1:][rows]
        if descends.any():
            row = rows.start + int(np.argmax(descends))
            found = f"{boundaries[row]:,} then {boundaries[row + 1]:,} at document {row:,}"
            raise _index_error("document boundaries are not in order", path, found, "ascending boundaries")


def _index_error(what: str, path: Path, found: object, expected: object, fix: str = COPY_AGAIN) -> IndexedDatasetError:
    return IndexedDatasetError(what, where=path, found=found, expected=expected, fix=fix)
