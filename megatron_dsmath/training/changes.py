"""What may not differ, unasked, between a checkpoint and the run file that continues it: what decides what is learned.

Steps, rate, layout and precision are the run file's business. Batch, sequence length, mixture, seed and tokenizer
decide which tokens come next; continued under others unnoticed, a run is no longer the one that its log describes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_dsmath.checkpoint.manifest import Manifest
from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.errors import CheckpointError, Refusals

TOKENIZER = "data.tokenizer"
_ABSENT = "absent"


def deciding_keys(run: RunConfig) -> dict[str, Any]:
    """The values that decide which tokens come next, by dotted key; a corpus goes by its name.

    A set of conversations, as the tokenizer, is compared by its content (`data.conversations.plan`).
    """
    data = run.data.model_dump(mode="json", exclude={"tokenizer", "corpora", "conversations"})
    values = {"seed": run.seed, "schedule.sequences_per_step": run.schedule.sequences_per_step}
    values |= {f"data.{key}": value for key, value in data.items()}
    for corpus in run.data.corpora:
        facts = corpus.model_dump(mode="json", exclude={"name", "max_epochs"})  # a limit, not a choice
        values |= {f"data.corpora.{corpus.name}.{key}": value for key, value in facts.items()}
    return values


def refuse_changes(checkpoint: Path, manifest: Manifest, run: RunConfig, tokenizer_fingerprint: str) -> None:
    """Raise CheckpointError for each key that differs and is not below one of `checkpoint.allowed_changes`."""
    before = {TOKENIZER: manifest.tokenizer_fingerprint, **manifest.run}
    now = {TOKENIZER: tokenizer_fingerprint, **(deciding_keys(run) if manifest.run else {})}
    allowed = run.checkpoint.allowed_changes
    refusals = [
        CheckpointError(
            f"{key} is not what the run was trained with",
            where=checkpoint,
            found=now.get(key, _ABSENT),
            expected=before.get(key, _ABSENT),
            fix=f"restore it, or say that the change is meant: --set 'checkpoint.allowed_changes=[{_section(key)}]'",
        )
        for key in _differing(before, now)
        if not _is_allowed(key, allowed)
    ]
    if refusals:
        raise refusals[0] if len(refusals) == 1 else Refusals(refusals)


def _differing(before: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    for key in {**before, **now}:
        if before.get(key, _ABSENT) != now.get(key, _ABSENT):
            yield key


def _section(key: str) -> str:
    """The key of the run file: a corpus that is new or has another weight is a change of all of them."""
    return "data.corpora" if key.startswith("data.corpora.") else key


def _is_allowed(key: str, allowed: Sequence[str]) -> bool:
    return _section(key) in allowed
