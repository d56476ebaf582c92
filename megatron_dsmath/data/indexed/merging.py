"""Merges several datasets into one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_dsmath.data.indexed.dataset import IndexedDataset, IndexedWriter, bin_path, idx_path
from megatron_dsmath.data.indexed.inspection import Inspection, inspect
from megatron_dsmath.data.indexed.sidecar import (
    CONVERSATIONS,
    Metadata,
    read_sidecar,
    sidecar_path,
    tokenizer_fingerprint,
)
from megatron_dsmath.errors import IndexedDatasetError, UsageError
from megatron_dsmath.files.atomic_files import require_free_space


def merge(prefixes: Sequence[str | Path], out: str | Path) -> Inspection:
    """Write the documents of all `prefixes`, in order, as the dataset `out`.

    The datasets must have the same dtype and, if known from their sidecars, the same tokenizer. Raises UsageError,
    IndexedDatasetError, and OutputError if the disk is full.
    """
    if not prefixes:
        raise UsageError("no dataset to merge was given", expected="one or more prefixes")
    if Path(out).resolve() in {Path(prefix).resolve() for prefix in prefixes}:
        raise UsageError(
            "a dataset cannot be merged into itself", where=out, expected="another name", fix="choose another --out"
        )
    datasets = [IndexedDataset(prefix) for prefix in prefixes]
    sidecars = [read_sidecar(prefix) for prefix in prefixes]
    _require_no_conversations(prefixes, sidecars)
    metadata = _common_metadata(prefixes, sidecars)
    with IndexedWriter(out, datasets[0].dtype) as writer:
        sizes = (path.stat().st_size for prefix in prefixes for path in (bin_path(prefix), idx_path(prefix)))
        require_free_space(Path(out).parent, sum(sizes))
        for dataset in datasets:
            writer.add_dataset(dataset)
        writer.metadata = metadata
    return inspect(out)


def _require_no_conversations(prefixes: Sequence[str | Path], sidecars: Sequence[Metadata | None]) -> None:
    for prefix, sidecar in zip(prefixes, sidecars, strict=True):
        if sidecar is not None and CONVERSATIONS in sidecar:
            raise UsageError(
                "a set of conversations cannot be merged, because its loss masks and labels would be lost",
                where=sidecar_path(prefix),
                found=f"the key {CONVERSATIONS!r}",
                expected="datasets of `dsmath data tokenize`",
                fix="build one set from all files: `dsmath sft build FILE FILE ... --out PREFIX`, or use --recipe",
            )


def _common_metadata(prefixes: Sequence[str | Path], sidecars: Sequence[Metadata | None]) -> Metadata:
    """The tokenizer entries of the sidecars, if all have them. Raises IndexedDatasetError if two tokenizers differ."""
    merged: Metadata = {"merged": [Path(prefix).name for prefix in prefixes]}
    fingerprints = [tokenizer_fingerprint(sidecar) for sidecar in sidecars]
    known = [(prefix, value) for prefix, value in zip(prefixes, fingerprints, strict=True) if value is not None]
    for prefix, fingerprint in known[1:]:
        if fingerprint != known[0][1]:
            raise IndexedDatasetError(
                "datasets with different tokenizers cannot be merged",
                where=sidecar_path(prefix),
                found=f"fingerprint {fingerprint}",
                expected=f"fingerprint {known[0][1]}, as in {sidecar_path(known[0][0])}",
                fix="tokenize both with the same tokenizer",
            )
    first = sidecars[0]
    if first is not None and len(known) == len(sidecars):
        merged |= {name: first[name] for name in ("vocabulary_size", "tokenizer") if name in first}
    return merged
