"""Step -> this rank's microbatches. Pure: the state of the data is one number, the next sample of the run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.config.data import CorpusConfig, DataConfig
from megatron_dsmath.data.blend import Blend
from megatron_dsmath.data.indexed import IndexedDataset
from megatron_dsmath.data.permutation import IntArray
from megatron_dsmath.data.samples import Corpus, Sample, Samples
from megatron_dsmath.data.sidecar import read_sidecar, sidecar_path
from megatron_dsmath.errors import ConfigError, DataError, DsmathError, LayoutError, Refusals, TokenizerError

PADDING = -1


class Microbatch(NamedTuple):
    """`tokens`: int64 [microbatch, sequence_length + 1]; inputs are all but the last, targets all but the first.

    `corpus`: int32 [microbatch], places in `Batches.names`; PADDING is a row that counts for nothing.
    `document_starts`: for each row int64, 0 included, as in `Sample`.
    """

    tokens: IntArray
    corpus: npt.NDArray[np.int32]
    document_starts: list[IntArray]


@dataclass(frozen=True)
class CorpusPlan:
    """What a run draws from one corpus: `share` of the mixture, `samples`, `tokens` trained on, passes over it."""

    name: str
    share: float
    samples: int
    tokens: int
    epochs: float


class Batches:
    """The mixture of a run, opened. Nothing it says depends on ranks, microbatches or machine."""

    def __init__(self, config: DataConfig, seed: int, vocabulary_size: int, tokenizer_fingerprint: str | None) -> None:
        """Open every corpus; all that is wrong with the entries is raised at once.

        Raises ConfigError (weights), DataError (missing, twice, too small), IndexedDatasetError (damaged) and
        TokenizerError (a sidecar names another tokenizer than `tokenizer_fingerprint`; None compares nothing).
        """
        self.config = config
        self.names = tuple(entry.name for entry in config.corpora)
        self.blend = Blend({entry.name: entry.weight for entry in config.corpora})
        self.corpora: list[Corpus] = []
        errors: list[DsmathError] = []
        opened: dict[Path, str] = {}
        for entry in config.corpora:
            try:
                shards = list(_open(entry, opened, tokenizer_fingerprint))
                self.corpora.append(
                    Corpus(entry.name, shards, config.sequence_length, config.held_out_share, seed, vocabulary_size)
                )
            except DsmathError as error:
                errors.append(error)
        _raise_all(errors)

    def plan(self, samples: int) -> tuple[CorpusPlan, ...]:
        """What a run of `samples` draws from each corpus. Raises ConfigError where that exceeds `max_epochs`."""
        counts = self.blend.counts(np.array([samples]))[0].tolist()
        plans = tuple(
            CorpusPlan(
                corpus.name,
                share=float(share),
                samples=count,
                tokens=count * self.config.sequence_length,
                epochs=count / corpus.training.samples_per_epoch,
            )
            for corpus, share, count in zip(self.corpora, self.blend.shares, counts, strict=True)
        )
        _raise_all(list(self._repeated_too_often(plans)))
        return plans

    def at(
        self, first_sample: int, samples: int, microbatch_sequences: int, data_rank: int, data_size: int
    ) -> list[Microbatch]:
        """This rank's microbatches of a step: its part of the `samples` from `first_sample` on.

        Each microbatch of all ranks together is a run of neighbouring samples, as in Megatron. Raises LayoutError
        when the samples do not divide, IndexedDatasetError for a token id beyond the vocabulary.
        """
        share = microbatch_sequences * data_size
        if samples % share:
            raise LayoutError(
                "the samples of a step do not divide into microbatches",
                where="parallel.microbatch_sequences",
                found=f"{samples} samples, {data_size} data-parallel ranks x microbatches of {microbatch_sequences}",
                expected=f"a multiple of {share} samples",
                fix="change schedule.sequences_per_step or parallel.microbatch_sequences",
            )
        numbers = np.arange(first_sample, first_sample + samples).reshape(-1, data_size, microbatch_sequences)
        draw = self.blend.locate(numbers[:, data_rank].ravel())
        sources = [corpus.training for corpus in self.corpora]
        return list(self._microbatches(sources, draw.corpus, draw.number, microbatch_sequences))

    def validation(
        self, sequences_per_corpus: int, microbatch_sequences: int, data_rank: int, data_size: int
    ) -> list[Microbatch]:
        """This rank's microbatches of the held-out parts: up to `sequences_per_corpus` of each, always the same.

        Every rank gets equally many, so the last are filled up with rows of PADDING. Raises as `at`.
        """
        sources = [corpus.validation for corpus in self.corpora]
        counts = [min(sequences_per_corpus, source.samples_per_epoch) for source in sources]
        corpora = np.repeat(np.arange(len(counts)), counts)
        numbers = np.concatenate([np.arange(count) for count in counts])
        padding = -len(numbers) % (microbatch_sequences * data_size)
        layout = (-1, data_size, microbatch_sequences)
        corpora = np.pad(corpora, (0, padding), constant_values=PADDING).reshape(layout)[:, data_rank]
        numbers = np.pad(numbers, (0, padding)).reshape(layout)[:, data_rank]
        return list(self._microbatches(sources, corpora.ravel(), numbers.ravel(), microbatch_sequences))

    def _microbatches(
        self, sources: Sequence[Samples], corpora: IntArray, numbers: IntArray, microbatch_sequences: int
    ) -> Iterator[Microbatch]:
        starts = np.zeros_like(numbers)
        for corpus, source in enumerate(sources):
            rows = corpora == corpus
            starts[rows] = source.locate(numbers[rows]).start
        padding = Sample(np.zeros(self.config.sequence_length + 1, np.int64), np.zeros(1, np.int64))
        for first in range(0, len(numbers), microbatch_sequences):
            rows = slice(first, first + microbatch_sequences)
            places = zip(corpora[rows].tolist(), starts[rows].tolist(), strict=True)
            read = [padding if corpus == PADDING else sources[corpus].read(start) for corpus, start in places]
            tokens = np.stack([sample.tokens for sample in read])
            yield Microbatch(tokens, corpora[rows].astype(np.int32), [sample.document_starts for sample in read])

    def _repeated_too_often(self, plans: Sequence[CorpusPlan]) -> Iterator[ConfigError]:
        for entry, plan in zip(self.config.corpora, plans, strict=True):
            if entry.max_epochs is not None and plan.epochs > entry.max_epochs:
                yield ConfigError(
                    "the run reads a corpus more often than it allows",
                    where=f"data.corpora.{entry.name}.max_epochs",
                    found=f"{plan.epochs:.4g} epochs ({plan.tokens:,} tokens)",
                    expected=f"at most {entry.max_epochs:g}",
                    fix="lower its weight, shorten the run, add documents, or raise max_epochs",
                )


def _open(entry: CorpusConfig, opened: dict[Path, str], tokenizer_fingerprint: str | None) -> Iterator[IndexedDataset]:
    """The shards of an entry, in order; `opened` remembers which file was opened for which entry."""
    where = f"data.corpora.{entry.name}.paths"
    for prefix in _prefixes(entry, where):
        shard = IndexedDataset(prefix)
        file = Path(f"{prefix}.bin").resolve()
        if file in opened:
            raise DataError(
                "a file is given twice",
                where=where,
                found=f"{prefix}.bin, also under {opened[file]}",
                expected="each file once: a corpus is repeated by its weight",
                fix="remove one of the two",
            )
        opened[file] = where
        _require_tokenizer(prefix, tokenizer_fingerprint)
        yield shard


def _prefixes(entry: CorpusConfig, where: str) -> Iterator[str]:
    """The prefixes that the paths of an entry stand for: itself, or every match of a pattern in sorted order."""
    for path in entry.paths:
        matches = sorted(glob(f"{path}.idx", recursive=True))  # noqa: PTH207, pathlib matches no absolute pattern
        indices = [f"{path}.idx"] if Path(f"{path}.idx").exists() else matches
        if not indices:
            raise DataError(
                "no dataset at this path",
                where=where,
                found=f"no file {path}.idx",
                expected="the prefix of a .bin/.idx pair, or a pattern of prefixes (data/math_*)",
                fix="check the path; `dsmath data tokenize` makes the pair",
            )
        yield from (index.removesuffix(".idx") for index in indices)


def _require_tokenizer(prefix: str, fingerprint: str | None) -> None:
    tokenizer = (read_sidecar(prefix) or {}).get("tokenizer")
    made_with = tokenizer.get("fingerprint") if isinstance(tokenizer, dict) else None
    if None not in (made_with, fingerprint) and made_with != fingerprint:
        raise TokenizerError(
            "the data was made with another tokenizer",
            where=sidecar_path(prefix),
            found=f"fingerprint {made_with}",
            expected=f"fingerprint {fingerprint}, of data.tokenizer",
            fix="tokenize the corpus with data.tokenizer, or name the tokenizer it was made with",
        )


def _raise_all(errors: Sequence[DsmathError]) -> None:
    if errors:
        raise errors[0] if len(errors) == 1 else Refusals(errors)
