"""Opens the datasets of which corpora consist, each once, for random reads."""

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
    """A cache of open datasets by prefix."""

    def __init__(self, fingerprint: str | None) -> None:
        """`fingerprint` of the tokenizer that every sidecar must have if it has one; None accepts any."""
        self._fingerprint = fingerprint
        self._opened: dict[Path, IndexedDataset] = {}

    def open(self, prefix: str | Path) -> IndexedDataset:
        """Open the dataset at `prefix`. Raises IndexedDatasetError (missing, damaged) and TokenizerError."""
        path = Path(prefix)
        if path not in self._opened:
            dataset = open_validated_dataset(path)
            self._require_tokenizer(path)
            dataset.expect_random_reads()
            self._opened[path] = dataset
        return self._opened[path]

    def open_planned(self, record: Shard) -> IndexedDataset:
        """Open a dataset of a plan. Raises DataError if it is missing or was changed, and as `open`."""
        if not bin_path(record.prefix).exists():
            raise DataError(
                "a file that the run still reads is missing",
                where=f"{record.prefix}.bin",
                found="no such file",
                expected="every file until the current epoch of its corpus ends, even if it is no longer listed",
                fix="restore it or a link to it; a corpus with a new name starts again with its present files",
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
                fix="restore the original file, and add new data under another name",
            )
        return dataset

    def open_corpora(self, corpora: Sequence[CorpusConfig]) -> dict[str, list[IndexedDataset]]:
        """Open the datasets of every entry of `data.corpora`, in order. Raises all errors at once.

        Raises DataError for a path without a dataset and for a file that is given twice, and as `open`.
        """
        opened: dict[str, list[IndexedDataset]] = {}
        errors: list[DsmathError] = []
        entries: dict[Path, str] = {}
        for entry in corpora:
            try:
                opened[entry.name] = [self._open_corpus_file(prefix, entry, entries) for prefix in _prefixes(entry)]
            except DsmathError as error:
                errors.append(error)
        raise_all(errors)
        return opened

    def _open_corpus_file(self, prefix: str, entry: CorpusConfig, entries: dict[Path, str]) -> IndexedDataset:
        """Open one dataset of an entry; `entries` maps each file to the entry that opened it."""
        dataset, file = self.open(prefix), bin_path(prefix).resolve()
        if CONVERSATIONS in (read_sidecar(prefix) or {}):
            raise DataError(
                "a set of conversations is not a corpus: its loss masks would be ignored",
                where=_where(entry),
                found=f"{prefix}, made by `dsmath sft build`",
                expected="a dataset of `dsmath data tokenize`",
                fix="name the set in data.conversations.prefix; `dsmath sft build` joins several sources in one set",
            )
        if file in entries:
            raise DataError(
                "a file is given twice",
                where=_where(entry),
                found=f"{prefix}.bin, also under {entries[file]}",
                expected="each file once; a larger weight repeats a corpus",
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
                expected=f"fingerprint {self._fingerprint} of data.tokenizer",
                fix="tokenize the corpus with data.tokenizer, or name the tokenizer it was made with",
            )


def _prefixes(entry: CorpusConfig) -> Iterator[str]:
    """Yield the prefixes of an entry: each path itself, or the matches of a pattern in sorted order."""
    for path in entry.paths:
        matches = sorted(glob(f"{path}.idx", recursive=True))  # noqa: PTH207, pathlib does not match absolute patterns
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
