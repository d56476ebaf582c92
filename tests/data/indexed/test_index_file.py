from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_dsmath.data.indexed.dataset import IndexedDataset
from megatron_dsmath.errors import IndexedDatasetError

HEADER = struct.Struct("<9sQBQQ")


def raw_index(
    lengths: list[int],
    offsets: list[int],
    documents: list[int],
    *,
    magic: bytes = b"MMIDIDX\x00\x00",
    version: int = 1,
    code: int = 4,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """An .idx by hand, from the layout in docs/data_format.md."""
    sequences, boundaries = counts or (len(lengths), len(documents))
    return b"".join(
        (
            HEADER.pack(magic, version, code, sequences, boundaries),
            np.array(lengths, "<i4").tobytes(),
            np.array(offsets, "<i8").tobytes(),
            np.array(documents, "<i8").tobytes(),
        )
    )


def put(prefix: Path, index: bytes, bin_bytes: int) -> Path:
    Path(f"{prefix}.idx").write_bytes(index)
    Path(f"{prefix}.bin").write_bytes(bytes(bin_bytes))
    return prefix


GOOD = {"lengths": [2, 3], "offsets": [0, 8], "documents": [0, 1, 2]}
FAULTS = {
    "bad magic": ({"magic": b"MMIDIDX\x00\x01"}, "not an index of tokens"),
    "another version": ({"version": 2}, "version of the index is not supported"),
    "float tokens": ({"code": 7}, "is not an integer"),
    "unknown dtype": ({"code": 99}, "is not an integer"),
    "2^62 sequences": ({"counts": (2**62, 3)}, "truncated"),
    "2^64-1 documents": ({"counts": (2, 2**64 - 1)}, "truncated"),
    "fewer sequences than there is room for": ({"counts": (1, 3)}, "too many bytes"),
    "negative length": ({"lengths": [-2, 7]}, "negative length"),
    "longer than the .bin": ({"lengths": [2, 4]}, "size of the .bin does not match"),
    "shorter than the .bin": ({"lengths": [2, 2]}, "size of the .bin does not match"),
    "sum wraps in 32 bits": ({"lengths": [2**31 - 1, 2**31 - 1]}, "size of the .bin does not match"),
    "negative offset": ({"offsets": [0, -8]}, "does not begin where"),
    "offset past the end": ({"offsets": [0, 2**62]}, "does not begin where"),
    "overlap": ({"offsets": [0, 4]}, "does not begin where"),
    "swapped": ({"offsets": [8, 0]}, "does not begin where"),
    "offset within a token": ({"offsets": [0, 9]}, "does not begin where"),
    "first boundary not 0": ({"documents": [1, 1, 2]}, "first document boundary"),
    "last boundary too low": ({"documents": [0, 1, 1]}, "last document boundary"),
    "last boundary too high": ({"documents": [0, 1, 3]}, "last document boundary"),
    "falling boundaries": ({"documents": [0, 2, 1, 2]}, "boundaries are not in order"),
    "no boundaries": ({"documents": []}, "no document boundaries"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_hostile_index_is_refused_with_its_fault(tmp_path: Path, name: str) -> None:
    change, message = FAULTS[name]
    prefix = put(tmp_path / "corpus", raw_index(**{**GOOD, **change}), 20)
    with pytest.raises(IndexedDatasetError, match=message) as caught:
        IndexedDataset(prefix)
    assert "corpus." in str(caught.value.where)
    assert None not in (caught.value.found, caught.value.expected, caught.value.fix)


def test_the_index_without_faults_is_valid(tmp_path: Path) -> None:
    assert len(IndexedDataset(put(tmp_path / "corpus", raw_index(**GOOD), 20))) == 2


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_an_index_with_changed_bytes_is_refused_or_stays_within_the_bin(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(raw_index(**GOOD))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    prefix = put(tmp_path / "corpus", bytes(content), 20)
    try:
        dataset = IndexedDataset(prefix)
    except IndexedDatasetError:
        return
    assert sum(len(dataset[i]) for i in range(len(dataset))) == dataset.token_count
    assert sum(len(dataset.document(i)) for i in range(dataset.document_count)) == dataset.token_count


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=200), bin_bytes=st.integers(0, 50))
def test_random_bytes_after_the_magic_are_refused(tmp_path: Path, content: bytes, bin_bytes: int) -> None:
    prefix = put(tmp_path / "corpus", b"MMIDIDX\x00\x00" + content, bin_bytes)
    with pytest.raises(IndexedDatasetError):
        IndexedDataset(prefix)


def test_a_huge_count_allocates_nothing(tmp_path: Path) -> None:
    prefix = put(tmp_path / "corpus", raw_index(**GOOD, counts=(2**61, 2**61)), 20)
    code = f"""
import resource
from megatron_dsmath.data.indexed.dataset import IndexedDataset
from megatron_dsmath.errors import IndexedDatasetError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
try:
    IndexedDataset({str(prefix)!r})
except IndexedDatasetError as error:
    print(error.what)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "the index is truncated\n"
