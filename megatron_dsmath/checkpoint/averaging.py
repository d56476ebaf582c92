"""Average the weights of several checkpoints and write the result as a checkpoint of kind `weights`.

The arithmetic is exact enough to be repeated bit for bit. For weights w1, w2, ... of the checkpoints (1 without
`--weights`) and their tensors x1, x2, ... in the order given, converted to fp32:

    v = float32(w / max(w))              divided in float64, then rounded
    mean = ((v1 * x1 + v2 * x2) + ...) / float32(v1 + v2 + ...)

Each operation on tensors is rounded to fp32; the sum of v is exact before it is rounded (`math.fsum`). The mean is
stored in fp32: bf16 has 8 significant bits, and rounding to it would lose digits that the mean has and no source has.

Of a training checkpoint the model's weights are read, as an export reads them: bf16 if it trains in bf16. The fp32
master weights belong to the optimizer's state, which no reader of weights opens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from megatron_dsmath.checkpoint import store, tokenizer_files
from megatron_dsmath.checkpoint.checkpoint_weights import write_weights_checkpoint
from megatron_dsmath.checkpoint.huggingface_config import CONFIG
from megatron_dsmath.checkpoint.manifest import AveragedCheckpoint, Manifest, differing_keys, read_manifest
from megatron_dsmath.checkpoint.to_huggingface import chat_format
from megatron_dsmath.checkpoint.weight_reader import WeightReader
from megatron_dsmath.checkpoint.weights import open_weights, weights_sha256
from megatron_dsmath.config.sections import ModelConfig
from megatron_dsmath.errors import CheckpointError, UsageError
from megatron_dsmath.files import directories
from megatron_dsmath.files.progress import TensorProgress


@dataclass(frozen=True)
class Averaged:
    """The result of an average; its text is printed for the user."""

    checkpoint: Path
    manifest: Manifest

    def __str__(self) -> str:
        parts = self.manifest.average or []
        lines = [f"{self.checkpoint}: {self.manifest.model.parameters:,} parameters in fp32, the mean of {len(parts)}"]
        shares = self.manifest.average_shares
        lines += [f"{share:8.4f}  {part.path}" for part, share in zip(parts, shares, strict=True)]
        return "\n".join(lines)


def average(
    paths: Sequence[Path],
    out: Path,
    *,
    last: int | None = None,
    weights: Sequence[float] | None = None,
    report: Callable[[TensorProgress], None] = lambda _: None,
) -> Averaged:
    """Write the mean of checkpoints and Hugging Face folders as the checkpoint `out` (weights, step 0).

    `last`: average this many of the newest complete checkpoints of the one run in `paths`, oldest first. `weights`: one
    per checkpoint, not necessarily with the sum 1. All but NaN and infinity in tensors is checked before anything is
    written, and a failed average leaves nothing. Raises UsageError, CheckpointError and ConversionError for checkpoints
    that are damaged or do not belong together, and OutputError if `out` is not empty or cannot be written.
    """
    directories.require_absent(out)
    found = _newest(paths, last) if last is not None else [_located(path) for path in paths]
    _require_several(found)
    weights = [1.0] * len(found) if weights is None else weights
    _require_weights(weights, len(found))
    with ExitStack() as opened:
        sources = []
        for path in found:
            sources.append(_Source(path, open_weights(path), _manifest(path)))
            opened.callback(sources[-1].weights.close)
        chats = _require_same(sources)
        parts = [source.described(weight) for source, weight in zip(sources, weights, strict=True)]
        mean = AveragedWeights([source.weights for source in sources], weights, report)
        return Averaged(out, write_weights_checkpoint(mean, out, facts={"state": chats, "average": parts}))


class AveragedWeights(WeightReader):
    """The weighted mean of stored weights of one model, in fp32; memory holds one part of a source and of the mean.

    Tokenizer files and the model's configuration are those of the first source.
    """

    def __init__(
        self,
        sources: Sequence[WeightReader],
        weights: Sequence[float],
        report: Callable[[TensorProgress], None] = lambda _: None,
    ) -> None:
        """`weights`: not negative, not all zero; `report` is called at the start and after each part."""
        first = sources[0]
        self.path, self.model = first.path, first.model
        self.tokenizer_files, self.special_token_ids = first.tokenizer_files, first.special_token_ids
        self._sources = sources
        self._factors = [float(np.float32(weight / max(weights))) for weight in weights]
        self._divisor = float(np.float32(math.fsum(self._factors)))
        self._report, self._read_bytes, self._names = report, 0, set[str]()
        values = [(torch.Size(shape).numel(), name) for name, shape in self.shapes.items()]
        self._total_bytes = sum(size * source.dtype(name).itemsize for source in sources for size, name in values)
        self._report_progress()

    def dtype(self, name: str) -> torch.dtype:
        """The type of the mean of any tensor: fp32."""
        return torch.float32

    def _read(self, name: str, part: tuple[slice, ...]) -> torch.Tensor:
        total = self._product(0, name, part)
        for index in range(1, len(self._sources)):
            total += self._product(index, name, part)
        self._names.add(name)
        self._report_progress()
        return total.div_(self._divisor)

    def _product(self, index: int, name: str, part: tuple[slice, ...]) -> torch.Tensor:
        stored = self._sources[index].read(name, self.shapes[name], part)
        self._read_bytes += stored.nbytes
        # A multiplication of its own: an addition with a factor could skip the rounding of the product.
        return stored.to(torch.float32, copy=True).mul_(self._factors[index])

    def _report_progress(self) -> None:
        self._report(TensorProgress(len(self._names), self._read_bytes, self._total_bytes))

    def close(self) -> None:
        """Do nothing: the sources are closed by those who opened them."""


class _Source(NamedTuple):
    path: Path
    weights: WeightReader
    manifest: Manifest | None  # None: a Hugging Face folder

    def described(self, weight: float) -> AveragedCheckpoint:
        return AveragedCheckpoint(
            path=str(self.path.resolve()),
            step=self.manifest.step if self.manifest else None,
            consumed_tokens=self.manifest.consumed_tokens if self.manifest else None,
            weight=weight,
            sha256=weights_sha256(self.path),
        )


def _located(path: Path) -> Path:
    return path if (path / CONFIG).exists() else store.locate(path)


def _manifest(path: Path) -> Manifest | None:
    return None if (path / CONFIG).exists() else read_manifest(path)


def _newest(paths: Sequence[Path], last: int) -> list[Path]:
    """The newest `last` complete checkpoints of a run, oldest first."""
    if len(paths) > 1 or last < 2:
        raise UsageError(
            "--last takes one run and at least two of its checkpoints",
            where="dsmath checkpoint average",
            found=f"--last {last} with {len(paths)} paths",
            expected="RUN_DIR --last N, with N at least 2",
            fix="give one run's directory, or list the checkpoints without --last",
        )
    complete = store.complete_checkpoints(paths[0])
    if len(complete) < last:
        raise CheckpointError(
            "there are fewer complete checkpoints than --last",
            where=paths[0],
            found=", ".join(folder.name for folder in complete) or "no complete checkpoint",
            expected=f"at least {last}",
            fix="give a smaller number, or a run's directory; a run keeps checkpoint.keep of them",
        )
    return complete[-last:]


def _require_several(found: Sequence[Path]) -> None:
    if len(found) < 2:
        raise UsageError(
            "an average needs at least two checkpoints",
            where="dsmath checkpoint average",
            found=", ".join(map(str, found)),
            expected="two checkpoints or more",
            fix="give more checkpoints, or --last N to take the newest N of a run",
        )
    real = [path.resolve() for path in found]
    twice = [path for index, path in enumerate(found) if real[index] in real[:index]]
    if twice:
        raise UsageError(
            "a checkpoint is given twice",
            where="dsmath checkpoint average",
            found=twice[0],
            expected="different checkpoints; a run's directory is its newest one",
            fix="give it once, with a larger number in --weights if it should count more",
        )


def _require_weights(weights: Sequence[float], count: int) -> None:
    valid = all(math.isfinite(weight) and weight >= 0 for weight in weights) and any(weights)
    if not valid or len(weights) != count:
        raise UsageError(
            "the weights of the average are not valid",
            where="--weights",
            found=" ".join(f"{weight:g}" for weight in weights),
            expected=f"{count} finite numbers, one per checkpoint, none negative and not all zero",
            fix="for example --weights " + " ".join(["1"] * (count - 1) + ["2"]),
        )


def _require_same(sources: Sequence[_Source]) -> dict[str, object]:
    """The chat format of the sources as the state of a manifest; empty if none was trained on conversations.

    Raises CheckpointError unless all sources have one architecture, one tokenizer and one chat format.
    """
    first, tokenizer = sources[0], tokenizer_files.load_from(sources[0].weights.tokenizer_files)
    special, chat = dict(first.weights.special_token_ids), None
    for source in sources:
        model, path = source.weights.model, source.path
        if keys := differing_keys(model, first.weights.model):
            raise _differs(path, first.path, "models", *(_listed(m, keys) for m in (model, first.weights.model)))
        other = tokenizer_files.load_from(source.weights.tokenizer_files)
        fingerprints = [known.fingerprint if known else "no tokenizer" for known in (other, tokenizer)]
        if fingerprints[0] != fingerprints[1]:
            raise _differs(path, first.path, "tokenizers", *fingerprints)
        for key, value in source.weights.special_token_ids.items():
            if special.setdefault(key, value) != value:
                raise _differs(path, first.path, "special tokens", f"{key} {value}", f"{key} {special[key]}")
        own = chat_format(source.manifest) if source.manifest else None
        chat = chat or own
        if own not in (None, chat):
            raise _differs(path, first.path, "chat formats", repr(own), repr(chat))
    return {"plan": {"chat_template": chat.template, "end_of_answer": chat.end_of_answer}} if chat else {}


def _listed(model: ModelConfig, keys: Sequence[str]) -> str:
    return ", ".join(f"{key} {getattr(model, key)}" for key in keys)


def _differs(path: Path, first: Path, what: str, found: str, expected: str) -> CheckpointError:
    return CheckpointError(
        f"the checkpoints have different {what}",
        where=path,
        found=found,
        expected=f"{expected}, as in {first}",
        fix="average checkpoints of one run, or of runs with the same model, tokenizer and conversations",
    )
