"""The .idx file alone: read and validated as a whole, or written. Its layout is drawn in docs/data_format.md.

Source: `_IndexReader` and `_IndexWriter` in `megatron.core.datasets.indexed_dataset`, which validates nothing.
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
DTYPES: dict[int, type[np.integer]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}  # 6 and 7 are floats
CODES = {np.dtype(dtype): code for code, dtype in DTYPES.items()}
ROWS_AT_ONCE = 1 << 20  # rows worked on together, so that memory is bounded whatever the size of the index

REBUILD = "the file is damaged: copy it again from its source, or tokenize again"


@dataclass(frozen=True)
class Index:
    """What an .idx holds. `lengths` in tokens, `offsets` in bytes, `document_indices` in sequences."""

    dtype: np.dtype[np.integer]
    lengths: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    document_indices: npt.NDArray[np.int64]


def read_index(path: Path) -> Index:
    """Map the .idx at `path`, of which only the header and the size are looked at. Raises IndexedDatasetError."""
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
    """Check all of the `index` at `path` against a .bin of `bin_bytes`. Raises IndexedDatasetError.

    Time is proportional to the index; nothing is allocated beyond `ROWS_AT_ONCE` rows.
    """
    _require_contiguous_sequences(path, index, bin_bytes)
    _require_rising_documents(path, index)


def write_index(file: OutputFile, dtype: np.dtype[np.integer], lengths: array[int], documents: array[int]) -> None:
    """Write an .idx from the `lengths` of the sequences (int32, tokens) and the `documents` boundaries (int64).

    Offsets follow from the lengths. Raises OutputError when the disk is full.
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
    """A file mapped into memory, read-only: nothing is read until it is looked at. An empty one cannot be: no bytes.

    A map keeps one descriptor open; where too many are, the limit is raised as far as the system allows. Raises
    IndexedDatasetError for a file that cannot be mapped.
    """
    try:
        try:
            return _map(path)
        except OSError as error:
            if error.errno != errno.EMFILE:
                raise
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
            return _map(path)
    except OSError as error:
        is_limit = error.errno == errno.EMFILE
        raise IndexedDatasetError(
            "the file cannot be opened",
            where=path,
            found=error.strerror,
            expected="a file that can be mapped into memory",
            fix="raise the limit of open files, or join shards: dsmath data merge" if is_limit else None,
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
    """The dtype of the tokens, the number of sequences and of document boundaries."""
    size_bytes, header = len(content), content[: HEADER.size]
    if header[: len(MAGIC)] != MAGIC:
        raise _fault(
            "not an index of tokens",
            path,
            repr(header[: len(MAGIC)]),
            repr(MAGIC),
            "give the prefix of a .bin/.idx pair",
        )
    if len(header) < HEADER.size:
        raise _fault("the index is truncated", path, f"{size_bytes} bytes", f"at least {HEADER.size}")
    _, version, code, sequences, boundaries = HEADER.unpack(header)
    if version != VERSION:
        raise _fault("the index has another version", path, version, VERSION, "tokenize again")
    if code not in DTYPES:
        known = ", ".join(f"{code} ({np.dtype(dtype)})" for code, dtype in DTYPES.items())
        raise _fault("the index has no integer dtype", path, f"dtype code {code}", known)
    expected_bytes = HEADER.size + 12 * sequences + 8 * boundaries
    if size_bytes != expected_bytes:
        what = "the index is truncated" if size_bytes < expected_bytes else "the index has bytes too many"
        counts = f"{sequences:,} sequences and {boundaries:,} document boundaries"
        raise _fault(what, path, f"{size_bytes:,} bytes", f"{expected_bytes:,} bytes for {counts}")
    if boundaries == 0:
        raise _fault("the index has no document boundaries", path, 0, "at least 1")
    return np.dtype(DTYPES[code]), sequences, boundaries


def _require_contiguous_sequences(path: Path, index: Index, bin_bytes: int) -> None:
    """Each sequence begins where the one before ended, the first at 0, and the last ends with the .bin."""
    for rows in row_ranges(len(index.lengths)):
        negative = index.lengths[rows] < 0
        if negative.any():
            row = rows.start + int(np.argmax(negative))
            found = f"{index.lengths[row]} at sequence {row:,}"
            raise _fault("a sequence has a negative length", path, found, "0 tokens or more")
    expected_bytes = int(index.lengths.sum(dtype=np.int64)) * index.dtype.itemsize
    if bin_bytes != expected_bytes:
        what, bin_ = "the .bin is not as long as the index says", path.with_name(f"{path.stem}.bin")
        raise _fault(what, bin_, f"{bin_bytes:,} bytes", f"{expected_bytes:,} bytes, the sum in {path.name}")
    next_offset = 0
    for rows in row_ranges(len(index.lengths)):
        ends = next_offset + np.cumsum(index.lengths[rows], dtype=np.int64) * index.dtype.itemsize
        starts = np.concatenate(([next_offset], ends[:-1]))
        misplaced = index.offsets[rows] != starts
        if misplaced.any():
            row = int(np.argmax(misplaced))
            found = f"byte {index.offsets[rows][row]:,} for sequence {rows.start + row:,}"
            raise _fault("a sequence does not begin where the one before ends", path, found, f"byte {starts[row]:,}")
        next_offset = int(ends[-1])


def _require_rising_documents(path: Path, index: Index) -> None:
    """Document boundaries rise from 0 to the number of sequences."""
    boundaries, sequences = index.document_indices, len(index.lengths)
    for what, found, expected in (("first", boundaries[0], 0), ("last", boundaries[-1], sequences)):
        if found != expected:
            raise _fault(
                f"the {what} document boundary is wrong", path, f"sequence {found:,}", f"sequence {expected:,}"
            )
    for rows in row_ranges(len(boundaries) - 1):
        falls = boundaries[rows] > boundaries[1:][rows]
        if falls.any():
            row = rows.start + int(np.argmax(falls))
            found = f"{boundaries[row]:,} then {boundaries[row + 1]:,} at document {row:,}"
            raise _fault("document boundaries fall", path, found, "boundaries that never fall")


def _fault(what: str, path: Path, found: object, expected: object, fix: str = REBUILD) -> IndexedDatasetError:
    return IndexedDatasetError(what, where=path, found=found, expected=expected, fix=fix)
