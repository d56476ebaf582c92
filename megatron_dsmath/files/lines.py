"""Reads the lines of a plain, gzip or Zstandard file in blocks, with a limit on the length of a line."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, cast

from megatron_dsmath.errors import DataError, DependencyError

LINE_LIMIT_BYTES = 64 << 20
EXCERPT_BYTES = 1000  # of a line over the limit, its beginning
BLOCK_BYTES = 256 << 10  # of a read: small enough to divide among workers, large enough to be efficient
# A Zstandard block of 4 bytes can hold 128 KiB, so a chunk of a hostile file becomes 32 MiB at most.
ZSTANDARD_CHUNK_BYTES = 1 << 10


class Line(NamedTuple):
    """One line without its newline; `number` counts from 1. Of a line over the limit, `content` is the beginning."""

    number: int
    content: bytes
    size_bytes: int


class LineBlock(NamedTuple):
    """Complete lines from `first_number` on, not yet split.

    `size_bytes` is more than the length of `content` if the block is the beginning of one line over the limit.
    """

    first_number: int
    content: bytes
    size_bytes: int

    def lines(self) -> Iterator[Line]:
        """Yield each line."""
        if self.size_bytes > len(self.content):
            yield Line(self.first_number, self.content, self.size_bytes)
            return
        for number, line in enumerate(self.content.removesuffix(b"\n").split(b"\n"), self.first_number):
            yield Line(number, line, len(line))


class LineReader:
    """Reads the lines of one file; decompresses `.gz` and `.zst`. The line limit bounds the memory."""

    def __init__(self, path: Path) -> None:
        """Open `path`. Raises DataError when it is missing, empty or not a file."""
        self.path = path
        self.size_bytes = require_content(path)
        try:
            self._raw = path.open("rb")
        except OSError as error:
            raise DataError(
                "the file cannot be opened", where=path, found=error.strerror, expected="a readable file"
            ) from error
        self._lines = _decompress(path, self._raw)
        self._number = 0

    @property
    def position_bytes(self) -> int:
        """How many bytes of the file on the disk, which may be compressed, have been read."""
        return self._raw.tell()

    def __iter__(self) -> Iterator[Line]:
        """Yield every line. Raises DataError when the file cannot be read or decompressed to its end."""
        return chain.from_iterable(block.lines() for block in self.blocks())

    def blocks(self) -> Iterator[LineBlock]:
        """The same lines in blocks of about `BLOCK_BYTES`; each block ends with a line."""
        while content := self._read(self._lines.read, BLOCK_BYTES):
            begin_of_last = content.rfind(b"\n") + 1
            begun_bytes = len(content) - begin_of_last
            if begun_bytes:
                content += self._read(self._lines.readline, LINE_LIMIT_BYTES + 1 - begun_bytes)
            last_bytes = len(content) - begin_of_last - content.endswith(b"\n")
            if last_bytes <= LINE_LIMIT_BYTES:
                yield self._block(content, len(content))
                continue
            if begin_of_last:
                yield self._block(content[:begin_of_last], begin_of_last)
            excerpt = content[begin_of_last:][:EXCERPT_BYTES]
            yield self._block(excerpt, last_bytes + self._skip_rest())
        if self._number == 0:
            raise _empty(self.path, "no line")

    def __enter__(self) -> LineReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._raw.close()

    def _block(self, content: bytes, size_bytes: int) -> LineBlock:
        block = LineBlock(self._number + 1, content, size_bytes)
        self._number += content.count(b"\n") + (not content.endswith(b"\n"))
        return block

    def _read(self, read: Callable[[int], bytes], limit_bytes: int) -> bytes:
        try:
            return read(limit_bytes)
        except (OSError, EOFError, zlib.error) as error:
            raise DataError(
                "the file cannot be read to its end",
                where=f"{self.path}:{self._number + 1}",
                found=error,
                expected="a complete file",
                fix="the file is truncated or damaged: download it again",
            ) from error

    def _skip_rest(self) -> int:
        """Skip the rest of the line; returns the number of bytes."""
        skipped_bytes = 0
        while part := self._read(self._lines.readline, 1 << 20):
            skipped_bytes += len(part.removesuffix(b"\n"))
            if part.endswith(b"\n"):
                break
        return skipped_bytes


def require_content(path: Path) -> int:
    """The size of `path` in bytes. Raises DataError when it is missing, empty or not a file."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing at this path"
        raise DataError("there is no such file", where=path, found=found, expected="a file", fix="check the path")
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise _empty(path, "0 bytes")
    return size_bytes


def _empty(path: Path, found: str) -> DataError:
    return DataError(
        "the file is empty", where=path, found=found, expected="one JSON object per line", fix="remove it from the list"
    )


def _decompress(path: Path, raw: BinaryIO) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if path.suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstandardReader(raw), buffer_size=1 << 20))
    return raw


class _ZstandardReader(io.RawIOBase):
    """Decompresses all frames and detects a file that ends within one (zstandard's own reader does not)."""

    def __init__(self, raw: BinaryIO) -> None:
        try:
            import zstandard
        except ImportError as error:
            raise DependencyError(
                "a .zst file needs the package zstandard",
                found="it is not installed",
                expected="zstandard",
                fix="pip install zstandard, or decompress the file first",
            ) from error
        self._raw = raw
        self._error = zstandard.ZstdError
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame = self._decompressor.decompressobj()
        self._within_frame = False
        self._pending = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill `buffer` with bytes of one chunk; returns 0 at the end. Raises OSError or EOFError."""
        while not self._pending:
            chunk = self._raw.read(ZSTANDARD_CHUNK_BYTES)
            if not chunk:
                if self._within_frame:
                    raise EOFError("the Zstandard stream ends before its end marker")
                return 0
            self._pending = memoryview(self._decompress(chunk))
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def _decompress(self, chunk: bytes) -> bytes:
        parts = []
        while chunk:
            try:
                parts.append(self._frame.decompress(chunk))
            except self._error as error:
                raise OSError(str(error)) from error
            self._within_frame = not self._frame.eof
            chunk = self._frame.unused_data
            if self._frame.eof:
                self._frame = self._decompressor.decompressobj()
        return b"".join(parts)
