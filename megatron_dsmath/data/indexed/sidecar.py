"""PREFIX.json, the sidecar of a .bin/.idx pair: its counts and hashes, and the tokenizer and options that made it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_dsmath.errors import IndexedDatasetError

if TYPE_CHECKING:
    from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer

Metadata = dict[str, object]
CONVERSATIONS = "conversations"  # the key of the metadata of a set of conversations, which has files of its own


def sidecar_path(prefix: str | Path) -> Path:
    """The path of the sidecar of `prefix`."""
    return Path(f"{prefix}.json")


def read_sidecar(prefix: str | Path) -> Metadata | None:
    """The content of PREFIX.json; None if there is none, as for datasets that Megatron-LM wrote.

    Raises IndexedDatasetError if it is not a JSON object.
    """
    path = sidecar_path(prefix)
    try:
        metadata = json.loads(path.read_bytes())
        if isinstance(metadata, dict):
            return metadata
        found: object = type(metadata).__name__
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        found = error
    raise IndexedDatasetError(
        "the sidecar cannot be read",
        where=path,
        found=found,
        expected="a JSON object, as `dsmath data tokenize` writes it",
        fix="remove it to continue without its counts and hashes, or tokenize again",
    )


def tokenizer_metadata(tokenizer: Tokenizer) -> Metadata:
    """The entries of a sidecar that describe the tokenizer."""
    return {
        "vocabulary_size": tokenizer.vocabulary_size,
        "tokenizer": {
            "name": f"{tokenizer.path.resolve().parent.name}/{tokenizer.path.name}",
            "fingerprint": tokenizer.fingerprint,
            "end_of_document": tokenizer.end_of_document,
            "begin_of_document": tokenizer.begin_of_document,
        },
    }


def tokenizer_fingerprint(sidecar: Metadata | None) -> str | None:
    """The fingerprint of the dataset's tokenizer; None if unknown."""
    return _text(sidecar, "tokenizer", "fingerprint")


def bin_sha256(sidecar: Metadata | None) -> str | None:
    """The hash of PREFIX.bin when it was written; None if unknown."""
    return _text(sidecar, "sha256", "bin")


def idx_sha256(sidecar: Metadata | None) -> str | None:
    """The hash of PREFIX.idx when it was written; None if unknown."""
    return _text(sidecar, "sha256", "idx")


def _text(sidecar: Metadata | None, group: str, name: str) -> str | None:
    entries = (sidecar or {}).get(group)
    text = entries.get(name) if isinstance(entries, dict) else None
    return text if isinstance(text, str) else None
