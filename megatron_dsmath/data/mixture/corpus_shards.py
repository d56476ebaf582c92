"""The datasets that corpora are made of, each opened once and read at random."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from glob import glob
from pathlib import Path

from megatron_dsmath.config.sections import CorpusConfig
from megatron_dsmath.data.indexed.dataset import IndexedDataset, bin_path
from megatron_dsmath.data.indexed.index_validation import open_validated_dataset
from megatron_dsmath.data.indexed.sidecar import (
    CONVERSATIONS,
    bin_sha256,
    read_sidecar,
    sidecar_path,
    tokenizer_fingerprint,
)
from megatron_dsmath.data.mixture.mixture_plan import Shard
from megatron_dsmath.errors import DataError, DsmathError, TokenizerError, raise_all


class Shards:
    """Datasets by prefix; nothing is opened twice."""

    def __init__(self, fingerprint: str | None) -> None:
        """`fingerprint` of the tokenizer they must have been made with, as far as sidecars tell; None compares none."""
        self._fingerprint = fingerprint
        self._opened: dict[Path, IndexedDataset] = {}

    def open(self, prefix: str | Path) -> IndexedDataset:
        """The dataset at `prefix`. Raises IndexedDatasetError (missing, damaged) and TokenizerError."""
        path = Path(prefix)
        if path not in self._opened:
            dataset = open_validated_dataset(path)
            self._require_tokenizer(path)
            dataset.expect_random_reads()
            self._opened[path] = dataset
        return self._opened[path]

    def open_planned(self, record: Shard) -> IndexedDataset:
        """The dataset of a plan. Raises DataError when it is gone or is not what the run first read, and as `open`."""
        if not bin_path(record.prefix).exists():
            raise DataError(
                "a file that the run still reads is gone",
                where=f"{record.prefix}.bin",
                found="no such file",
                expected="every file until the running epoch of its corpus ends, even one that is no longer listed",
                fix="put it back, or a link to it; under another name a corpus begins anew with the files it has",
            )
        dataset = self.open(record.prefix)
        sha256 = bin_sha256(read_sidecar(record.prefix)) or record.sha256
        found = (dataset.document_count, dataset.token_count, sha256 if record.sha256 else None)
        expected = (record.documents, record.tokens, record.sha256)
        if found != expected:
            raise DataError(
                "a file was changed since the run first read it",
                where=f"{record.prefix}.bin",
                found=_description(*found),
                expected=_description(*expected),
                fix="put the former file back; new data goes under another name",
            )
        return dataset

    def open_corpora(self, corpora: Sequence[CorpusConfig]) -> dict[str, list[IndexedDataset]]:
        """The datasets of every entry of `data.corpora`, in order; all that is wrong with them is raised at once.

        Raises DataError for a path without a dataset and for a file that is given twice, and as `open`.
        """
        opened: dict[str, list[IndexedDataset]] = {}
        errors: list[DsmathError] = []
        entries: dict[Path, str] = {}
        for entry in corpora:
            try:
                opened[entry.name] = [self._of_entry(prefix, entry, entries) for prefix in _prefixes(entry)]
            except DsmathError as error:
                errors.append(error)
        raise_all(errors)
        return opened

    def _of_entry(self, prefix: str, entry: CorpusConfig, entries: dict[Path, str]) -> IndexedDataset:
        """One dataset of an entry; `entries` remembers which file was opened for which entry."""
        dataset, file = self.open(prefix), bin_path(prefix).resolve()
        if CONVERSATIONS in (read_sidecar(prefix) or {}):
            raise DataError(
                "a set of conversations is no corpus: its loss masks would be ignored",
                where=_where(entry),
                found=f"{prefix}, which `dsmath sft build` made",
                expected="a dataset of `dsmath data tokenize`",
                fix="name the set in data.conversations.prefix; several sources go into one set: `dsmath sft build`",
            )
        if file in entries:
            raise DataError(
                "a file is given twice",
                where=_where(entry),
                found=f"{prefix}.bin, also under {entries[file]}",
                expected="each file once: a corpus is repeated by its weight",
                fix="remove one of the two",
            )
        entries[file] = _where(entry)
        return dataset

    def _require_tokenizer(self, prefix: Path) -> None:
        made_with = tokenizer_fingerprint(read_sidecar(prefix))
        if None not in (made_with, self._fingerprint) and made_with != self._fingerprint:
            raise TokenizerError(
                "the data was made with another tokenizer",
                where=sidecar_path(prefix),
                found=f"fingerprint {made_with}",
                expected=f"fingerprint {self._fingerprint}, of data.tokenizer",
                fix="tokenize the corpus with data.tokenizer, or name the tokenizer it was made with",
            )


def _prefixes(entry: CorpusConfig) -> Iterator[str]:
    """The prefixes that the paths of an entry stand for: itself, or every match of a pattern in sorted order."""
    for path in entry.paths:
        matches = sorted(glob(f"{path}.idx", recursive=True))  # noqa: PTH207, pathlib matches no absolute pattern
        indices = [f"{path}.idx"] if Path(f"{path}.idx").exists() else matches
        if not indices:
            raise DataError(
                "no dataset at this path",
                where=_where(entry),
                found=f"no file {path}.idx",
                expected="the prefix of a .bin/.idx pair, or a pattern of prefixes (data/math_*)",
                fix="check the path; `dsmath data tokenize` makes the pair",
            )
        yield from (index.removesuffix(".idx") for index in indices)


def _description(documents: int, tokens: int, sha256: str | None) -> str:
    return f"{documents:,} documents, {tokens:,} tokens" + (f", sha256 {sha256}" if sha256 else "")


def _where(entry: CorpusConfig) -> str:
    return f"data.corpora.{entry.name}.paths"
