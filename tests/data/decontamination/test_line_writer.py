from __future__ import annotations

import gzip
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard

from megatron_dsmath.data.atomic_files import AtomicFiles
from megatron_dsmath.data.decontamination.line_writer import LineWriter
from megatron_dsmath.errors import DependencyError

LINES = [b"one\n", b"", b"two\r\n" * 1000, b"\xff\n"]
READERS: dict[str, Callable[[bytes], bytes]] = {
    "out.jsonl": bytes,
    "out.jsonl.gz": gzip.decompress,
    "out.jsonl.zst": lambda content: zstandard.ZstdDecompressor().decompressobj().decompress(content),
}


def write(path: Path) -> bytes:
    files = AtomicFiles(path)
    writer = LineWriter(files.files[0])
    for lines in LINES:
        writer.write(lines)
    writer.finish()
    files.publish()
    return path.read_bytes()


@pytest.mark.parametrize("name", READERS)
def test_the_name_says_how_lines_are_compressed(tmp_path: Path, name: str) -> None:
    assert READERS[name](write(tmp_path / name)) == b"".join(LINES)


@pytest.mark.parametrize("name", READERS)
def test_the_same_lines_give_the_same_bytes_wherever_and_whenever(tmp_path: Path, name: str) -> None:
    content = write(tmp_path / name)
    assert write(tmp_path / "elsewhere" / f"other_{name}") == content
    if name.endswith(".gz"):
        assert content[3:8] == bytes(5)  # RFC 1952: no name within (flags), no time


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(DependencyError, match=r"pip install zstandard"):
        write(tmp_path / "out.jsonl.zst")
