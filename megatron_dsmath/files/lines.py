"""The lines of a file, plain, gzip or Zstandard, in blocks of whole lines and never more of one than the limit."""

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
EXCERPT_BYTES = 1000  # what is kept of a line over the limit
BLOCK_BYTES = 256 << 10  # what is read at once: small enough to share out, large enough to be worth it
# A Zstandard block of 4 bytes can stand for 128 KiB, so a chunk of a hostile file becomes 32 MiB at most.
ZSTANDARD_CHUNK_BYTES = 1 << 10


class Line(NamedTuple):
    """One line without its newline. `number` counts from 1. Over the limit, `content` is only how it begins."""

    number: int
    content: bytes
    size_bytes: int


class LineBlock(NamedTuple):
    """Whole lines, from `first_number` on. `size_bytes` is more than the content where this is one line over the limit.

    As it was read: nobody looks at the single lines before the process that works on them.
    """

    first_number: int
    content: bytes
    size_bytes: int

    def lines(self) -> Iterator[Line]:
        """Each line."""
        if self.size_bytes > len(self.content):
            yield Line(self.first_number, self.content, self.size_bytes)
            return
        for number, line in enumerate(self.content.removesuffix(b"\n").split(b"\n"), self.first_number):
            yield Line(number, line, len(line))


class LineReader:
    """Reads the lines of one file; `.gz` and `.zst` are decompressed on the way.

    Memory is bounded by the line limit, whatever the file holds.
    """

    def __init__(self, path: Path) -> None:
        """Open `path`. Raises DataError when it is missing, empty or no file."""
        self.path = path
        self.size_bytes = require_content(path)
        try:
            self._raw = path.open("rb")
        except OSError as error:
            raise DataError(
                "the file cannot be opened", where=path, found=error.strerror, expected="a file that can be read"
            ) from error
        self._lines = _decompress(path, self._raw)
        self._number = 0

    @property
    def position_bytes(self) -> int:
        """How far the file, as it lies on the disk, has been read."""
        return self._raw.tell()

    def __iter__(self) -> Iterator[Line]:
        """Every line, in order. Raises DataError when the file cannot be read or decompressed to its end."""
        return chain.from_iterable(block.lines() for block in self.blocks())

    def blocks(self) -> Iterator[LineBlock]:
        """The same lines, in blocks that reach over `BLOCK_BYTES` only to the end of a line."""
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
            raise _empty(self.path, "no line within")

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
                expected="a whole file",
                fix="the file is cut off or damaged: fetch it again",
            ) from error

    def _skip_rest(self) -> int:
        """Read on to the end of the line, keeping nothing; how many bytes that was."""
        skipped_bytes = 0
        while part := self._read(self._lines.readline, 1 << 20):
            skipped_bytes += len(part.removesuffix(b"\n"))
            if part.endswith(b"\n"):
                break
        return skipped_bytes


def require_content(path: Path) -> int:
    """The size of `path` in bytes. Raises DataError when it is missing, empty or no file."""
    if not path.is_file():
        found = "a folder" if path.is_dir() else "nothing at this path"
        raise DataError("there is no such file", where=path, found=found, expected="a file", fix="check the path")
    size_bytes = path.stat().st_size
    if size_bytes == 0:
        raise _empty(path, "0 bytes")
    return size_bytes


def _empty(path: Path, found: str) -> DataError:
    return DataError(
        "the file is empty", where=path, found=found, expected="one JSON object a line", fix="leave it out"
    )


def _decompress(path: Path, raw: BinaryIO) -> BinaryIO:
    if path.suffix == ".gz":
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if path.suffix == ".zst":
        return cast(BinaryIO, io.BufferedReader(_ZstandardReader(raw), buffer_size=1 << 20))
    return raw


class _ZstandardReader(io.RawIOBase):
    """Decompresses frame after frame, and notices a file that ends within one (the package's own reader does not)."""

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
        """Fill `buffer` as far as one chunk goes; 0 at the end. Raises OSError or EOFError."""
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
