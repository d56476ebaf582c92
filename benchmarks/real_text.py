"""Real texts: the standard library, installed packages and documentation of this machine, and the test data."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

TEXT_ENDINGS = (".py", ".pyi", ".txt", ".md", ".rst", ".h", ".hpp", ".html", ".js", ".pod", ".pm")


def texts_of_this_machine(limit_bytes: int) -> list[str]:
    """Distinct UTF-8 files in a fixed order, up to a total of `limit_bytes`."""
    texts: list[str] = []
    hashes: set[bytes] = set()
    total_bytes = 0
    for path in _text_files():
        if total_bytes >= limit_bytes:
            break
        try:
            content = path.read_bytes()
            text = content.decode()
        except (OSError, UnicodeDecodeError):
            continue
        digest = hashlib.sha256(content).digest()
        if content and digest not in hashes:
            hashes.add(digest)
            texts.append(text)
            total_bytes += len(content)
    return texts


def texts_of_test_data(folder: Path) -> list[str]:
    """Every string in every row of the JSONL files in `folder`, each row once."""
    files = sorted(folder.glob("*/*.jsonl"))
    rows = dict.fromkeys(line for file in files for line in file.read_text().splitlines() if line)
    return [text for row in rows for text in _strings(json.loads(row))]


def _text_files() -> Iterator[Path]:
    installed = sysconfig.get_paths()
    folders = [installed["stdlib"], installed["purelib"], installed["platlib"], "/usr/share", "/usr/lib/python3"]
    for folder in dict.fromkeys(folders):
        for directory, subfolders, names in os.walk(folder):
            subfolders.sort()
            paths = (Path(directory, name) for name in sorted(names) if name.endswith(TEXT_ENDINGS))
            yield from (path for path in paths if not path.is_symlink())


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _strings(part)


if __name__ == "__main__":
    sizes = [len(text.encode()) for text in texts_of_this_machine(sys.maxsize)]
    print(f"{len(sizes):,} distinct files, {sum(sizes) / 1e6:.0f} MB")
