"""Documents in a random order that a seed decides, with memory bounded whatever the corpus."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from megatron_dsmath.data.atomic_files import Kept, require_free_space
from megatron_dsmath.data.indexed.dataset import IndexedDataset, IndexedWriter, bin_path, idx_path
from megatron_dsmath.data.indexed.index_file import row_ranges
from megatron_dsmath.data.indexed.sidecar import sidecar_path
from megatron_dsmath.data.mixture.permutation import permute, random_words


@contextmanager
def shuffling(
    writer: IndexedWriter, prefix: Path, seed: int | None, kept: Mapping[Path, Kept]
) -> Iterator[IndexedWriter]:
    """A writer whose documents reach `writer` in an order drawn from `seed`, when the block ends well.

    They wait in PREFIX.unshuffled.bin, which is read back through a memory map. Without a seed this is `writer`
    itself. `kept` of these files is gone on with. Raises OutputError when the disk does not hold them twice.
    """
    if seed is None:
        yield writer
        return
    waiting = Path(f"{prefix}.unshuffled")
    try:
        with IndexedWriter(waiting, writer.dtype, kept=kept) as first:
            yield first
        require_free_space(prefix.parent, bin_path(waiting).stat().st_size + idx_path(waiting).stat().st_size)
        _add_shuffled(writer, IndexedDataset(waiting), seed)
    finally:
        for path in (idx_path(waiting), bin_path(waiting), sidecar_path(waiting)):
            path.unlink(missing_ok=True)


def _add_shuffled(writer: IndexedWriter, dataset: IndexedDataset, seed: int) -> None:
    key = random_words("shuffle of documents", seed)
    for rows in row_ranges(dataset.document_count):
        for number in permute(np.arange(rows.start, rows.stop), dataset.document_count, key):
            writer.add_document(dataset.document(int(number)))
