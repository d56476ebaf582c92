"""Files of a folder that came from elsewhere: nothing outside it is read, and JSON is what it says it is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from megatron_dsmath.errors import ConversionError


def inside(folder: Path, name: str) -> Path:
    """`folder`/`name`, or ConversionError where that leads out of the folder: by its path, or through a link."""
    path = folder / name
    if Path(name).name == name and path.resolve().is_relative_to(folder.resolve()):
        return path
    raise ConversionError(
        "a file of the folder lies outside it",
        where=folder,
        found=f"{name}, which is {path.resolve()}",
        expected="files in the folder itself",
        fix="copy the folder with its links resolved (cp -rL; `hf download MODEL --local-dir FOLDER` does so)",
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises ConversionError when it is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise _no_json(path, error) from error
    if not isinstance(content, dict):
        raise _no_json(path, f"a JSON {type(content).__name__}")
    return content


def _no_json(path: Path, found: object) -> ConversionError:
    return ConversionError(
        "a file of the folder is missing or not JSON",
        where=path,
        found=found,
        expected="a JSON object",
        fix="get the file again, or name the right folder",
    )
