"""Several datasets with the same documents, one per field, which are written together and appear together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.indexed.dataset import IndexedDataset, IndexedWriter, bin_path, idx_path
from megatron_dsmath.data.indexed.index_file import row_ranges
from megatron_dsmath.data.indexed.sidecar import sidecar_path
from megatron_dsmath.data.mixture.permutation import permute, random_words
from megatron_dsmath.files.atomic_files import OutputFile, PartialFile, require_free_space


@dataclass(frozen=True)
class DatasetWriters:
    """The `writers` of the datasets, and the `inputs` that take their documents.

    With a shuffle seed, an input is the temporary dataset of a `_shuffled_writer`; without, it is the writer itself.
    """

    writers: Sequence[IndexedWriter]
    inputs: Sequence[IndexedWriter]

    @property
    def extra_files(self) -> list[OutputFile]:
        """The files that appear together with the datasets."""
        return self.writers[0].extra_files

    @property
    def growing_files(self) -> list[OutputFile]:
        """The files that grow with every document: the extra files and each .bin."""
        return [*self.extra_files, *(writer.bin for writer in self.inputs)]

    @property
    def document_count(self) -> int:
        """The number of documents in each dataset so far."""
        return self.inputs[0].document_count

    @property
    def token_counts(self) -> list[int]:
        """The number of tokens in each dataset so far."""
        return [writer.token_count for writer in self.inputs]

    def restore_documents(self, lengths: npt.NDArray[np.int64]) -> None:
        """Add documents of `lengths` [datasets, documents] whose tokens the files already contain."""
        for writer, own_lengths in zip(self.inputs, lengths, strict=True):
            writer.restore_documents(own_lengths)

    def add_documents(self, tokens: Sequence[npt.NDArray[np.integer]], lengths: npt.NDArray[np.int64]) -> None:
        """Append documents: to each dataset its concatenated `tokens`; `lengths` [datasets, documents]."""
        for writer, own_tokens, own_lengths in zip(self.inputs, tokens, lengths, strict=True):
            writer.add_documents(own_tokens, own_lengths)


@contextmanager
def open_datasets(
    prefixes: Sequence[Path],
    dtype: np.dtype[np.integer],
    extra_files: Sequence[Path],
    shuffle_seed: int | None,
    resume_from: Mapping[Path, PartialFile],
) -> Iterator[DatasetWriters]:
    """Write a dataset at each of `prefixes`; a `shuffle_seed` puts the documents in a random order.

    No dataset gets its name before all of them, and the `extra_files`, are on the disk. The unfinished files of
    a killed run are continued as `resume_from` describes. Raises OutputError.
    """
    with ExitStack() as stack:
        writers = [
            stack.enter_context(IndexedWriter(prefix, dtype, () if number else extra_files, resume_from))
            for number, prefix in enumerate(prefixes)
        ]
        with ExitStack() as shuffles:
            inputs = writers
            if shuffle_seed is not None:
                inputs = [
                    shuffles.enter_context(_shuffled_writer(writer, prefix, shuffle_seed, resume_from))
                    for writer, prefix in zip(writers, prefixes, strict=True)
                ]
            yield DatasetWriters(writers, inputs)
        for writer in writers:
            writer.prepare()


@contextmanager
def _shuffled_writer(
    writer: IndexedWriter, prefix: Path, seed: int, resume_from: Mapping[Path, PartialFile]
) -> Iterator[IndexedWriter]:
    """A writer whose documents are added to `writer` in a random order when the block ends without an error.

    Until then they are in PREFIX.unshuffled.bin, which is read through a memory map. Raises OutputError if the disk
    has no space for both copies.
    """
    unshuffled = Path(f"{prefix}.unshuffled")
    try:
        with IndexedWriter(unshuffled, writer.dtype, resume_from=resume_from) as first:
            yield first
        require_free_space(prefix.parent, bin_path(unshuffled).stat().st_size + idx_path(unshuffled).stat().st_size)
        dataset, key = IndexedDataset(unshuffled), random_words("shuffle of documents", seed)
        for rows in row_ranges(dataset.document_count):
            for number in permute(np.arange(rows.start, rows.stop), dataset.document_count, key):
                writer.add_document(dataset.document(int(number)))
    finally:
        for path in (idx_path(unshuffled), bin_path(unshuffled), sidecar_path(unshuffled)):
            path.unlink(missing_ok=True)
