"""Lines to a part of an output file, compressed as the file's name says; parts end to end are the file."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

from megatron_dsmath.errors import DependencyError

Compress = Callable[[bytes], bytes]

GZIP_CONTAINER = 16 + zlib.MAX_WBITS  # zlib's way to say it; its header holds neither name nor time


def compression_of(path: Path) -> Compress:
    """What turns lines into a part of `path`: a member of a .gz file, a frame of a .zst one, else just the lines.

    The same lines give the same bytes, in any process. Raises DependencyError for a package that is not installed.
    """
    if path.suffix == ".gz":
        return _gzip_member
    if path.suffix != ".zst":
        return bytes
    try:
        import zstandard  # noqa: F401, whether it is there
    except ImportError as error:
        raise DependencyError(
            "a .zst file needs the package zstandard",
            where=path,
            found="it is not installed",
            expected="zstandard",
            fix="pip install zstandard, or choose a name without .zst",
        ) from error
    return _zstandard_frame


def _gzip_member(lines: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=GZIP_CONTAINER)
    return compressor.compress(lines) + compressor.flush()


def _zstandard_frame(lines: bytes) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor().compress(lines)
