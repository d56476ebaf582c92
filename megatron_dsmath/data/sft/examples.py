"""Sets of examples on disk: a .bin/.idx pair with one document per example, PREFIX.targets and PREFIX.labels.

PREFIX.targets has one bit per token in the order of the .bin, most significant bit first: 1 where the token is a
target. PREFIX.labels has COLUMNS for each example, int32. PREFIX.json lists the names of the numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.indexed.dataset import IndexedDataset, IndexedWriter
from megatron_dsmath.data.indexed.index_file import map_file
from megatron_dsmath.data.indexed.sidecar import CONVERSATIONS, Metadata, read_sidecar, sidecar_path
from megatron_dsmath.data.sft.template import EncodedExamples
from megatron_dsmath.errors import DataError
from megatron_dsmath.files.atomic_files import OutputFile

COLUMNS = ("kind", "language", "source", "topic", "file", "line", "target_tokens")
NO_TOPIC = -1


def targets_path(prefix: str | Path) -> Path:
    """The path of the loss masks of `prefix`."""
    return Path(f"{prefix}.targets")


def labels_path(prefix: str | Path) -> Path:
    """The path of the labels of `prefix`."""
    return Path(f"{prefix}.labels")


class ExampleWriter:
    """Writes a set of examples. Its files appear together at the end of the `with` block, or not at all.

    `metadata` is written to PREFIX.json, and with it `conversations` and the hashes of .targets and .labels.
    """

    def __init__(self, prefix: Path, dtype: np.dtype[np.integer], quarantine: Path | None) -> None:
        """Open the files, including a `quarantine`. Raises OutputError where the folder cannot be written."""
        beside = [targets_path(prefix), labels_path(prefix), *([quarantine] if quarantine else [])]
        self._writer = IndexedWriter(prefix, dtype, beside)
        self._targets, self._labels, *others = self._writer.extra_files
        self.quarantine: OutputFile | None = others[0] if others else None
        self._bits = np.empty(0, np.bool_)  # that do not fill a byte yet
        self.metadata: Metadata = {}
        self.conversations: Metadata = {}

    @property
    def example_count(self) -> int:
        """The number of examples added so far."""
        return self._writer.document_count

    @property
    def token_count(self) -> int:
        """The number of their tokens."""
        return self._writer.token_count

    def add(self, examples: EncodedExamples, labels: npt.NDArray[np.int32]) -> None:
        """Append examples with their `labels`, int32 [examples, COLUMNS]. Raises OutputError when the disk is full."""
        self._writer.add_documents(examples.tokens, examples.lengths)
        self._labels.write(labels.astype("<i4").tobytes())
        bits = np.concatenate([self._bits, examples.is_target])
        whole = len(bits) // 8 * 8
        self._targets.write(np.packbits(bits[:whole]).tobytes())
        self._bits = bits[whole:]

    def __enter__(self) -> ExampleWriter:
        self._writer.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._targets.write(np.packbits(self._bits).tobytes())
            hashes = {"targets": self._targets.sha256, "labels": self._labels.sha256}
            self._writer.metadata = self.metadata | {CONVERSATIONS: self.conversations | {"sha256": hashes}}
        self._writer.__exit__(kind, error, trace)


class Examples:
    """A set of examples, memory-mapped.

    `lengths`: int32 [examples], in tokens. `labels`: int32 [examples, COLUMNS]. `facts`: the metadata of the
    conversations in the sidecar; its `names` are those of kinds, languages, sources, topics and files, by number.
    """

    def __init__(self, prefix: str | Path) -> None:
        """Open the files of `prefix`. Raises IndexedDatasetError, or DataError where they are not a set of examples."""
        self.dataset = IndexedDataset(prefix)
        self.prefix = self.dataset.prefix
        self.sidecar = read_sidecar(prefix) or {}
        facts = self.sidecar.get(CONVERSATIONS)
        if not isinstance(facts, dict) or "chat_template" not in facts:
            found = f"no {CONVERSATIONS!r} with a chat template"
            raise self._fault(sidecar_path(prefix), found, "the sidecar that `dsmath sft build` writes")
        self.facts: dict[str, Any] = facts
        self.lengths = self.dataset.lengths
        self.first_tokens = self.dataset.offsets // self.dataset.dtype.itemsize
        count, tokens = len(self.lengths), self.dataset.token_count
        self._bits = self._map(targets_path(prefix), np.dtype(np.uint8), -(-tokens // 8))
        labels = self._map(labels_path(prefix), np.dtype("<i4"), count * len(COLUMNS))
        self.labels: npt.NDArray[np.int32] = labels.reshape(count, len(COLUMNS))

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.lengths)

    def column(self, name: str) -> npt.NDArray[np.int32]:
        """One of COLUMNS: int32 [examples]."""
        column: npt.NDArray[np.int32] = self.labels[:, COLUMNS.index(name)]
        return column

    def names(self, column: str) -> Sequence[str]:
        """The names of the numbers in a column."""
        names: list[str] = self.facts["names"][column]
        return names

    def read(
        self, example: int, first: int = 0, count: int | None = None
    ) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.bool_]]:
        """`count` tokens of an example from `first` (None: to its end), and whether each is a target."""
        begin = int(self.first_tokens[example]) + first
        end = begin + (int(self.lengths[example]) - first if count is None else count)
        bits = np.unpackbits(self._bits[begin // 8 : -(-end // 8)])
        skipped = begin % 8
        return self.dataset.tokens[begin:end], bits[skipped : skipped + end - begin].astype(np.bool_)

    def _map(self, path: Path, dtype: np.dtype[Any], count: int) -> npt.NDArray[Any]:
        size_bytes = path.stat().st_size if path.is_file() else None
        if size_bytes != count * dtype.itemsize:
            found = "no file" if size_bytes is None else f"{size_bytes:,} bytes"
            raise self._fault(path, found, f"{count * dtype.itemsize:,} bytes")
        return np.frombuffer(map_file(path), dtype)

    def _fault(self, where: Path, found: str, expected: str) -> DataError:
        return DataError(
            "the files are not a set of conversations",
            where=where,
            found=found,
            expected=expected,
            fix="build it again with `dsmath sft build`, or give the prefix of one",
        )
