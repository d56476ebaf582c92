"""MANIFEST.json: the description of a checkpoint, with size and sha256 of every file; validated when it is read."""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, NonNegativeFloat, NonNegativeInt, ValidationError

from megatron_dsmath import __version__
from megatron_dsmath.config.sections import ModelConfig, Section
from megatron_dsmath.errors import CheckpointError

MANIFEST = "MANIFEST.json"
CHECKOUT = Path(__file__).resolve().parents[2]
Precision = Literal["fp32", "bf16", "fp16", "mixed"]
# Fields that must agree for weights to fit; lengths, initial values and kernels may differ.
_ARCHITECTURE = (
    "layers",
    "hidden_size",
    "ffn_hidden_size",
    "attention_heads",
    "key_value_heads",
    "vocabulary_size",
    "norm_epsilon",
    "rope_theta",
)


def software() -> dict[str, str]:
    """The versions of this program and its libraries, and the commit."""
    versions = {"python": platform.python_version(), "megatron_dsmath": __version__, "commit": source_commit()}
    for package in ("torch", "megatron-core", "safetensors"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "absent"
    return versions


@cache
def source_commit(checkout: Path = CHECKOUT) -> str:
    """The commit of a checkout, with `-dirty` appended if files differ from it; `unknown` without a checkout.

    An installed package may be inside another repository, so `.git` must be in `checkout` itself.
    """
    if not (checkout / ".git").exists():
        return "unknown"
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    environment = os.environ | {"GIT_OPTIONAL_LOCKS": "0"}
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10, env=environment)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


def _relative_path(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or str(pure) != path or path in (".", MANIFEST):
        raise ValueError("a path inside the checkpoint was expected")
    return path


class FileEntry(Section):
    """Size and hash of a file."""

    bytes: NonNegativeInt
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


Files = dict[Annotated[str, AfterValidator(_relative_path)], FileEntry]


class LogitVerdict(Section):
    """The comparison of our logits with transformers', or the reason why there was none."""

    skipped: str | None = None  # the reason why nothing was compared; null if it was
    transformers: str | None = None  # its version
    positions: int = 0  # number of tokens whose logits over the vocabulary were compared
    equal_next_tokens: int = 0  # positions at which both have the same most likely token
    largest_difference: float = 0.0  # of two logits
    tolerance: float = 0.0  # the difference above which the conversion fails

    def __str__(self) -> str:
        if self.skipped:
            return f"not compared with transformers: {self.skipped}"
        return (
            f"compared with transformers {self.transformers}: largest difference {self.largest_difference:.1e} "
            f"(allowed {self.tolerance:.1e}), same next token at {self.equal_next_tokens} of {self.positions} positions"
        )


class AveragedCheckpoint(Section):
    """A checkpoint or a Hugging Face folder whose weights are part of an average."""

    path: str  # where it was
    step: NonNegativeInt | None  # completed optimizer steps; null for a Hugging Face folder
    consumed_tokens: NonNegativeInt | None
    weight: NonNegativeFloat  # relative to the other weights
    sha256: str  # of the checkpoint's manifest, or of the folder's configuration and weights


class Manifest(Section):
    """The description of a checkpoint; `files` may be empty until they are hashed."""

    format: Literal["megatron_dsmath checkpoint"] = "megatron_dsmath checkpoint"
    version: Literal[1] = 1  # increased when older readers would misread the content
    # training: `shards/`, weights and optimizer. weights: `weights/`, safetensors under Hugging Face's names.
    kind: Literal["training", "weights"]
    step: NonNegativeInt  # completed optimizer steps
    next_sample: NonNegativeInt  # the first sample not yet trained on
    consumed_tokens: NonNegativeInt
    model: ModelConfig
    layout: dict[str, Any]  # of the ranks that wrote it; any layout can read it
    precision: Precision  # of the stored weights; `mixed` if tensors differ
    tokenizer_fingerprint: str | None  # of the tokenizer whose files are in `tokenizer/`; null if there is none
    state: dict[str, Any]  # the rest of the training state
    # The values of the run file that decide which tokens come next, by dotted key; empty for weights.
    run: dict[str, Any] = Field(default_factory=dict)
    # Other facts that decide results bit for bit, of rank 0: threads, processor, device, torch; empty for weights.
    machine: dict[str, Any] = Field(default_factory=dict)
    logit_gate: LogitVerdict | None = None  # of an import; null if nothing was imported
    average: list[AveragedCheckpoint] | None = None  # what the weights are the mean of; absent if they are no mean
    software: dict[str, str] = Field(default_factory=software)
    files: Files = Field(default_factory=dict)  # every other file by its path in the checkpoint
    sha256: str | None = None  # hash of all values above, which detects changed numbers; `to_json` writes it

    @property
    def size_bytes(self) -> int:
        """The size of all files except the manifest."""
        return sum(entry.bytes for entry in self.files.values())

    @property
    def average_shares(self) -> list[float]:
        """The weights of the averaged checkpoints, divided by their sum."""
        weights = [part.weight for part in self.average or []]
        relative = [weight / (max(weights) or 1.0) for weight in weights]
        return [weight / (math.fsum(relative) or 1.0) for weight in relative]

    @property
    def values_sha256(self) -> str:
        """The hash that `sha256` must equal."""
        values = self._values()
        return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()

    def to_json(self) -> str:
        """The content of MANIFEST.json."""
        values = self._values() | {"sha256": self.values_sha256}
        return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    def _values(self) -> dict[str, Any]:
        # `average` is newer than the other keys: older manifests were hashed without it.
        absent = {"average"} if self.average is None else set()
        return self.model_dump(mode="json", exclude={"sha256"} | absent)


def read_manifest(checkpoint: Path) -> Manifest:
    """Read `checkpoint`/MANIFEST.json. Raises CheckpointError if it is missing or damaged."""
    path = checkpoint / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise not_a_checkpoint(checkpoint, f"no readable {MANIFEST} ({error.strerror})") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise CheckpointError(
            f"the checkpoint's {MANIFEST} is damaged or has a newer version",
            where=f"{path}: {key}" if key else path,
            found=first["msg"],
            expected=f"a manifest of version {Manifest.model_fields['version'].default}",
            fix="use another checkpoint, or the version of this program that wrote it",
        ) from None
    if manifest.sha256 != manifest.values_sha256:
        raise CheckpointError(
            f"the checkpoint's {MANIFEST} differs from what was saved",
            where=path,
            found=f"sha256 {manifest.values_sha256} of its values",
            expected=f"sha256 {manifest.sha256}, from the file",
            fix="copy the file again from its source, or use another checkpoint",
        )
    return manifest


def not_a_checkpoint(path: Path, found: str) -> CheckpointError:
    """The error for a path without a checkpoint."""
    return CheckpointError(
        "this is not a checkpoint",
        where=path,
        found=found,
        expected=f"a directory with a {MANIFEST}, or a run's directory with complete checkpoints",
        fix="give a step_N directory, a run's directory, or a checkpoint that `dsmath import-hf` wrote",
    )


def differing_keys(found: ModelConfig, expected: ModelConfig) -> list[str]:
    """The keys in which two models differ so that the weights of one do not fit the other."""
    return [key for key in _ARCHITECTURE if getattr(found, key) != getattr(expected, key)]


def check_same_model(found: ModelConfig, run_model: ModelConfig, where: Path | None = None) -> None:
    """Raise CheckpointError, with every key that differs, unless weights of the model `found` fit the run's model.

    `where`: the checkpoint to name in the error.
    """
    differing = differing_keys(found, run_model)
    if differing:
        raise CheckpointError(
            "the weights belong to another model than the run's",
            where=where or ", ".join(f"model.{key}" for key in differing),
            found=", ".join(f"{key} {getattr(found, key)}" for key in differing),
            expected=", ".join(f"{key} {getattr(run_model, key)}" for key in differing),
            fix="set these keys of the run file to the values found, or give other weights",
        )
