"""Several datasets to one, document after document."""

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

    The datasets must share dtype and, where their sidecars name one, tokenizer. Raises UsageError,
    IndexedDatasetError, and OutputError when `out` does not fit or is one of the inputs.
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
    facts = _common_facts(prefixes, sidecars)
    with IndexedWriter(out, datasets[0].dtype) as writer:
        sizes = (path.stat().st_size for prefix in prefixes for path in (bin_path(prefix), idx_path(prefix)))
        require_free_space(Path(out).parent, sum(sizes))
        for dataset in datasets:
            writer.add_dataset(dataset)
        writer.metadata = facts
    return inspect(out)


def _require_no_conversations(prefixes: Sequence[str | Path], sidecars: Sequence[Metadata | None]) -> None:
    for prefix, sidecar in zip(prefixes, sidecars, strict=True):
        if sidecar is not None and CONVERSATIONS in sidecar:
            raise UsageError(
                "a set of conversations cannot be merged: its loss masks and labels would be lost",
                where=sidecar_path(prefix),
                found=f"{CONVERSATIONS!r} in it",
                expected="datasets of `dsmath data tokenize`",
                fix="build one set of all files: `dsmath sft build FILE FILE ... --out PREFIX`, or with --recipe",
            )


def _common_facts(prefixes: Sequence[str | Path], sidecars: Sequence[Metadata | None]) -> Metadata:
    """What the sidecars say of the tokenizer; nothing when one has no sidecar. Raises where two tokenizers differ."""
    merged: Metadata = {"merged": [Path(prefix).name for prefix in prefixes]}
    told = [(prefix, tokenizer_fingerprint(sidecar)) for prefix, sidecar in zip(prefixes, sidecars, strict=True)]
    known = [(prefix, fingerprint) for prefix, fingerprint in told if fingerprint is not None]
    for prefix, fingerprint in known[1:]:
        if fingerprint != known[0][1]:
            raise IndexedDatasetError(
                "datasets of two tokenizers cannot be joined",
                where=sidecar_path(prefix),
                found=f"fingerprint {fingerprint}",
                expected=f"fingerprint {known[0][1]}, as in {sidecar_path(known[0][0])}",
                fix="tokenize both with the same tokenizer",
            )
    first = sidecars[0]
    if first is not None and len(known) == len(sidecars):
        merged |= {name: first[name] for name in ("vocabulary_size", "tokenizer") if name in first}
    return merged
