"""Lines into an output file, plain or compressed as its name says."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Protocol

from megatron_dsmath.data.atomic_files import OutputFile
from megatron_dsmath.errors import DependencyError

GZIP_CONTAINER = 16 + zlib.MAX_WBITS  # zlib's way to say it; its header holds neither name nor time


class LineWriter:
    """Writes lines into `file`; a name in .gz or .zst makes it compress them. The same lines give the same bytes."""

    def __init__(self, file: OutputFile) -> None:
        """Raises DependencyError when the name asks for a package that is not installed."""
        self._file = file
        self._compressor = _compressor(file.path)

    def write(self, lines: bytes) -> None:
        """Append whole lines. Raises OutputError when the disk is full."""
        self._file.write(self._compressor.compress(lines))

    def finish(self) -> None:
        """Append what a reader needs to see that the file is whole; nothing may be written after."""
        self._file.write(self._compressor.flush())


class _Compressor(Protocol):
    def compress(self, data: bytes, /) -> bytes: ...

    def flush(self) -> bytes: ...


class _Plain:
    def compress(self, data: bytes, /) -> bytes:
        return data

    def flush(self) -> bytes:
        return b""


def _compressor(path: Path) -> _Compressor:
    if path.suffix == ".gz":
        return zlib.compressobj(wbits=GZIP_CONTAINER)
    if path.suffix != ".zst":
        return _Plain()
    try:
        import zstandard
    except ImportError as error:
        raise DependencyError(
            "a .zst file needs the package zstandard",
            where=path,
            found="it is not installed",
            expected="zstandard",
            fix="pip install zstandard, or choose a name without .zst",
        ) from error
    return zstandard.ZstdCompressor().compressobj()
