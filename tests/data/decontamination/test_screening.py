from __future__ import annotations

import gzip
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from megatron_dsmath.data.decontamination.screening import select_compression
from megatron_dsmath.errors import DependencyError

PARTS = [b"one\n", b"", b"two\r\n" * 1000, b"\xff\n"]
READERS: dict[str, Callable[[bytes], bytes]] = {
    "out.jsonl": bytes,
    "out.jsonl.gz": gzip.decompress,
    "out.jsonl.zst": lambda content: (
        zstandard.ZstdDecompressor().decompressobj(read_across_frames=True).decompress(content)
    ),
}


@pytest.mark.parametrize("name", READERS)
def test_compressed_parts_form_one_file(name: str) -> None:
    compress = pickle.loads(pickle.dumps(select_compression(Path(name))))  # as a worker receives it
    assert READERS[name](b"".join(compress(part) for part in PARTS)) == b"".join(PARTS)


def test_a_gzip_member_has_neither_name_nor_time() -> None:
    assert select_compression(Path("out.gz"))(b"one\n")[3:8] == bytes(5)  # RFC 1952: no flags, no time


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DependencyError, match=r"pip install zstandard"):
        select_compression(Path("out.jsonl.zst"))
