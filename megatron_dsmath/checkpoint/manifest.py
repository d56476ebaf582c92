"""MANIFEST.json: what a checkpoint is, and the size and hash of every file in it. JSON only, validated when read."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeInt, ValidationError

from megatron_dsmath import __version__
from megatron_dsmath.config.sections import ModelConfig, Section
from megatron_dsmath.errors import CheckpointError


class LogitVerdict(Section):
    """The largest difference of two forward passes over the same ids, or why there was no comparison."""

    skipped: str | None = None
    """Why nothing was compared; null where it was."""
    transformers: str | None = None
    """The version of transformers that was the other side."""
    positions: int = 0
    """Tokens whose logits over the whole vocabulary were compared."""
    equal_next_tokens: int = 0
    """Positions at which both sides hold the same token for the likeliest."""
    largest_difference: float = 0.0
    """Over all positions and words."""
    tolerance: float = 0.0
    """The difference beyond which nothing would have been written."""

    def __str__(self) -> str:
        if self.skipped:
            return f"not compared with transformers: {self.skipped}"
        return (
            f"compared with transformers {self.transformers}: at most {self.largest_difference:.1e} apart (allowed "
            f"{self.tolerance:.1e}), the next token equal at {self.equal_next_tokens} of {self.positions} positions"
        )


CHECKOUT = Path(__file__).resolve().parents[2]


@cache
def source_commit(checkout: Path = CHECKOUT) -> str:
    """The commit of a checkout, ending in `-dirty` where files differ from it; `unknown` where there is no checkout.

    An installed package may lie inside somebody else's repository, so only a `.git` of its own counts.
    """
    if not (checkout / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
            env=os.environ | {"GIT_OPTIONAL_LOCKS": "0"},
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


MANIFEST = "MANIFEST.json"

Precision = Literal["fp32", "bf16", "fp16", "mixed"]


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or str(pure) != path or path in (".", MANIFEST):
        raise ValueError("a path inside the checkpoint was expected")
    return path


class FileEntry(Section):
    """What one file must be."""

    bytes: NonNegativeInt
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


Files = dict[Annotated[str, AfterValidator(_inside)], FileEntry]


def software() -> dict[str, str]:
    """The versions a checkpoint is written with, and the commit of this program."""
    versions = {"python": platform.python_version(), "megatron_dsmath": __version__, "commit": source_commit()}
    for package in ("torch", "megatron-core", "safetensors"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return versions


class Manifest(Section):
    """A checkpoint's description; `files` may be left empty until they are hashed."""

    format: Literal["megatron_dsmath checkpoint"] = "megatron_dsmath checkpoint"
    version: Literal[1] = 1
    """Raised when a reader of an older version would misread what is written."""
    kind: Literal["training", "weights"]
    """training: `shards/`, weights and optimizer. weights: `weights/`, safetensors under Hugging Face's names."""
    step: NonNegativeInt
    """Completed optimizer steps."""
    next_sample: NonNegativeInt
    """The first sample not yet trained on."""
    consumed_tokens: NonNegativeInt
    model: ModelConfig
    layout: dict[str, Any]
    """How the ranks that wrote it were arranged; any layout reads it."""
    precision: Precision
    """Of the stored weights; mixed where tensors differ."""
    tokenizer_fingerprint: str | None
    """Fingerprint of the tokenizer whose files are in `tokenizer/`; null where there is none."""
    state: dict[str, Any]
    """What else the writer wants back."""
    run: dict[str, Any] = Field(default_factory=dict)
    """The values of the run file that decide which tokens come next, by dotted key; empty for weights."""
    machine: dict[str, Any] = Field(default_factory=dict)
    """What beside the run file decides its bits, of rank 0: threads, processor, device, torch; empty for weights."""
    logit_gate: LogitVerdict | None = None
    """What comparing an import's logits with transformers' found; null where nothing was imported."""
    software: dict[str, str] = Field(default_factory=software)
    files: Files = Field(default_factory=dict)
    """Every other file of the checkpoint by its path in it."""
    sha256: str | None = None
    """Of all the values above: a damaged number would be another number. `to_json` writes it."""

    @property
    def size_bytes(self) -> int:
        """Bytes of all files but the manifest."""
        return sum(entry.bytes for entry in self.files.values())

    @property
    def values_sha256(self) -> str:
        """What `sha256` must be."""
        values = self.model_dump(mode="json", exclude={"sha256"})
        return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()

    def to_json(self) -> str:
        """As it is written."""
        values = self.model_dump(mode="json") | {"sha256": self.values_sha256}
        return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def read_manifest(checkpoint: Path) -> Manifest:
    """Read `checkpoint`/MANIFEST.json. Raises CheckpointError when there is none or it is damaged."""
    path = checkpoint / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise not_a_checkpoint(checkpoint, f"no readable {MANIFEST} ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"the checkpoint's {MANIFEST} is damaged, or of a newer version",
            where=f"{path}: {key}" if key else path,
            found=first["msg"],
            expected=f"a manifest of version {Manifest.model_fields['version'].default}",
            fix="use another checkpoint, or the program that wrote this one",
        ) from None
    if manifest.sha256 != manifest.values_sha256:
        raise CheckpointError(
            f"the checkpoint's {MANIFEST} is not what was saved",
            where=path,
            found=f"sha256 {manifest.values_sha256} of its values",
            expected=f"sha256 {manifest.sha256}, as it says",
            fix="copy the file again from where it came, or use another checkpoint",
        )
    return manifest


def not_a_checkpoint(path: Path, found: str) -> CheckpointError:
    """The error for a path that holds no checkpoint."""
    return CheckpointError(
        "this is not a checkpoint",
        where=path,
        found=found,
        expected=f"a directory with a {MANIFEST}, or a run's directory with complete checkpoints",
        fix="name a step_N directory, a run's directory, or what `dsmath import-hf` wrote",
    )
