"""PREFIX.json, the sidecar of a .bin/.idx pair: counts, hashes, and the tokenizer and options it was made with."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_dsmath.errors import IndexedDatasetError

if TYPE_CHECKING:
    from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer

Metadata = dict[str, object]
CONVERSATIONS = "conversations"  # what a sidecar says of examples whose masks and labels lie in files of their own


def sidecar_path(prefix: str | Path) -> Path:
    """Where the sidecar of `prefix` lies."""
    return Path(f"{prefix}.json")


def sidecar_bytes(facts: Metadata) -> bytes:
    """The sidecar as it is written: readable, in the order given."""
    return (json.dumps(facts, indent=2, ensure_ascii=False) + "\n").encode()


def read_sidecar(prefix: str | Path) -> Metadata | None:
    """What PREFIX.json says; None where there is none, as for files that Megatron-LM wrote.

    Raises IndexedDatasetError when it is not a JSON object.
    """
    path = sidecar_path(prefix)
    try:
        facts = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise _unreadable(path, error) from error
    if not isinstance(facts, dict):
        raise _unreadable(path, type(facts).__name__)
    return facts


def tokenizer_fingerprint(sidecar: Metadata | None) -> str | None:
    """The fingerprint of the tokenizer that a dataset was made with; None where its sidecar does not tell."""
    return _text(sidecar, "tokenizer", "fingerprint")


def bin_sha256(sidecar: Metadata | None) -> str | None:
    """The hash of PREFIX.bin as it was written; None where its sidecar does not tell."""
    return _text(sidecar, "sha256", "bin")


def idx_sha256(sidecar: Metadata | None) -> str | None:
    """The same of PREFIX.idx."""
    return _text(sidecar, "sha256", "idx")


def sha256_of(path: Path) -> str:
    """The hash of a file as it lies on the disk, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _text(sidecar: Metadata | None, group: str, name: str) -> str | None:
    facts = (sidecar or {}).get(group)
    text = facts.get(name) if isinstance(facts, dict) else None
    return text if isinstance(text, str) else None


def _unreadable(path: Path, found: object) -> IndexedDatasetError:
    return IndexedDatasetError(
        "the sidecar cannot be read",
        where=path,
        found=found,
        expected="a JSON object, as `dsmath data tokenize` writes it",
        fix="remove it to go on without its counts and hashes, or tokenize again",
    )


def tokenizer_metadata(tokenizer: Tokenizer) -> Metadata:
    """What the sidecar of a dataset says of the tokenizer that made it."""
    return {
        "vocabulary_size": tokenizer.vocabulary_size,
        "tokenizer": {
            "name": f"{tokenizer.path.resolve().parent.name}/{tokenizer.path.name}",
            "fingerprint": tokenizer.fingerprint,
            "end_of_document": tokenizer.end_of_document,
            "begin_of_document": tokenizer.begin_of_document,
        },
    }
