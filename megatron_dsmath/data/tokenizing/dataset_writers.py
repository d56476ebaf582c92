"""Datasets with the same documents, one for each field, which are written together and appear together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.indexed.dataset import IndexedDataset, IndexedWriter, bin_path, idx_path
from megatron_dsmath.data.indexed.index_file import row_ranges
from megatron_dsmath.data.indexed.sidecar import Metadata, sidecar_path
from megatron_dsmath.data.mixture.permutation import permute, random_words
from megatron_dsmath.files.atomic_files import OutputFile, PartialFile, require_free_space


@contextmanager
def shuffled_writer(
    writer: IndexedWriter, prefix: Path, seed: int | None, kept: Mapping[Path, PartialFile]
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


class DatasetWriters:
    """Writes a dataset at each of `prefixes`, in an order drawn from `shuffle_seed` where there is one.

    None of them gets its name before all of them, and the `extra_files`, are on the disk.
    """

    def __init__(
        self,
        prefixes: Sequence[Path],
        dtype: np.dtype[np.integer],
        extra_files: Sequence[Path],
        shuffle_seed: int | None,
        kept: Mapping[Path, PartialFile],
    ) -> None:
        """Begin them, with what is `kept` of a killed run's files. Raises OutputError."""
        with ExitStack() as stack:
            self._writers = [
                stack.enter_context(IndexedWriter(prefix, dtype, () if number else extra_files, kept))
                for number, prefix in enumerate(prefixes)
            ]
            stack.push(self._prepare)
            self._targets = [
                stack.enter_context(shuffled_writer(writer, prefix, shuffle_seed, kept))
                for writer, prefix in zip(self._writers, prefixes, strict=True)
            ]
            self._stack = stack.pop_all()
        self.extra_files = self._writers[0].extra_files

    @property
    def growing_files(self) -> list[OutputFile]:
        """The files that hold something before the end."""
        targets = (file for target in self._targets for file in target.growing_files)
        return list(dict.fromkeys([*self.extra_files, *targets]))

    @property
    def document_count(self) -> int:
        """How many documents each dataset has so far."""
        return self._targets[0].document_count

    @property
    def token_counts(self) -> list[int]:
        """How many tokens each dataset has so far."""
        return [target.token_count for target in self._targets]

    def restore_documents(self, lengths: npt.NDArray[np.int64]) -> None:
        """Take documents of `lengths` [datasets, documents] into account whose tokens are kept."""
        for target, own in zip(self._targets, lengths, strict=True):
            target.restore_documents(own)

    def add_documents(self, tokens: Sequence[npt.NDArray[np.integer]], lengths: npt.NDArray[np.int64]) -> None:
        """Append documents: to each dataset its `tokens`, end to end; `lengths` [datasets, documents]."""
        for target, own_tokens, own_lengths in zip(self._targets, tokens, lengths, strict=True):
            target.add_documents(own_tokens, own_lengths)

    def set_metadata(self, facts: Sequence[Metadata]) -> None:
        """Say what the sidecar of each dataset holds next to its counts."""
        for writer, own in zip(self._writers, facts, strict=True):
            writer.metadata = own

    def __enter__(self) -> DatasetWriters:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def _prepare(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            for writer in self._writers:
                writer.prepare()
