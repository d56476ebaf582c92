"""Reads the samples of a run back from disk, to check them (`data audit`) or to print them (`data show`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from megatron_dsmath.config import load
from megatron_dsmath.data.audit.ledger import Ledger
from megatron_dsmath.data.indexed.sidecar import sha256_of
from megatron_dsmath.data.mixture.corpus_shards import Shards
from megatron_dsmath.data.mixture.mixture_batches import MixtureBatches
from megatron_dsmath.data.mixture.mixture_plan import MixturePlan
from megatron_dsmath.data.mixture.permutation import IntArray
from megatron_dsmath.data.mixture.run_plan import RunPlan
from megatron_dsmath.data.sft.conversation_batches import PackedBatches
from megatron_dsmath.data.sft.conversation_plan import ConversationPlan, require_same_set
from megatron_dsmath.data.sft.examples import Examples, labels_path, targets_path
from megatron_dsmath.data.tokenizing.tokenizer import load_tokenizer
from megatron_dsmath.errors import DataError, UsageError


@dataclass(frozen=True)
class PassageText:
    """The text of tokens [first_token, end_token) of one document in a sample.

    For conversations, a document is an example and `corpus` its source. A passage may begin or end within a character;
    the remaining bytes are shown as U+FFFD.
    """

    sample: int
    corpus: str
    shard: str
    document: int
    first_token: int
    end_token: int
    text: str


def read_step(run: Path, step: int) -> Iterator[PassageText]:
    """Yield the text that the run in the directory `run` read in `step`, sample by sample.

    Raises ConfigError if `run` is not the directory of a run, DataError for its ledger or files, and UsageError for a
    step that is not in the ledger.
    """
    config = load(run / "run.yaml")
    ledger = Ledger(run / "ledger")
    rows = {row.step: row for row in ledger.read_rows()}
    if step not in rows:
        raise UsageError(
            "the run has no such step",
            where="--step",
            found=step,
            expected=f"1 to {max(rows)}" if rows else "a run with at least one step",
        )
    tokenizer = load_tokenizer(config.data.tokenizer)
    stored = open_stored_samples(ledger.read_plan(), tokenizer.fingerprint, config.model.vocabulary_size)
    for sample in range(rows[step].first_sample, rows[step].end_sample):
        for passage in stored.passages(sample):
            yield PassageText(
                sample,
                passage.name,
                str(passage.prefix),
                passage.document,
                passage.first,
                passage.end,
                tokenizer.decode(passage.tokens.tolist()),
            )


def print_passages(passages: Iterable[PassageText], as_json: bool) -> None:
    """Print each passage with a header that gives its location, or all passages as a JSON list."""
    if as_json:
        print(json.dumps([asdict(passage) for passage in passages], indent=1, ensure_ascii=False))
        return
    for passage in passages:
        location = f"document {passage.document:,}, tokens {passage.first_token:,} to {passage.end_token - 1:,}"
        print(f"--- sample {passage.sample:,}: {passage.corpus}, {passage.shard}, {location}")
        print(passage.text)


class StoredPassage(NamedTuple):
    """Tokens [first, end) of one document or example in a sample; `name` is its corpus or source."""

    name: str
    prefix: Path
    document: int
    first: int
    end: int
    tokens: IntArray


class StoredSamples(Protocol):
    """The samples of a run as they are on disk now."""

    plan: RunPlan

    def tokens(self, samples: IntArray) -> IntArray:
        """Read the tokens of samples of one version, int64 [n]: int64 [n, sequence_length + 1].

        Raises IndexedDatasetError for a token beyond the vocabulary.
        """

    def passages(self, sample: int) -> Iterator[StoredPassage]:
        """Yield the passages of a sample, in order."""


class StoredMixture:
    """The samples of a mixture."""

    def __init__(self, plan: MixturePlan, shards: Shards, vocabulary_size: int) -> None:
        """Open the newest version. Raises as `Shards.open_planned`."""
        self.plan: RunPlan = plan
        self._batches = MixtureBatches(plan, shards, vocabulary_size)

    def tokens(self, samples: IntArray) -> IntArray:
        """See `StoredSamples`."""
        mixture = self._batches.mixture(self.plan.version_at(int(samples[0])))
        locations = zip(*(column.tolist() for column in mixture.locate(samples)), strict=True)
        return np.stack([mixture.training[corpus].window_tokens(epoch, start) for corpus, epoch, start in locations])

    def passages(self, sample: int) -> Iterator[StoredPassage]:
        """See `StoredSamples`."""
        for corpus, passage in self._batches.mixture(self.plan.version_at(sample)).passages(sample):
            _, document, first, end, tokens = passage
            yield StoredPassage(corpus, passage.shard.prefix, document, first, end, tokens)


class StoredConversations:
    """The samples of a set of conversations."""

    def __init__(self, plan: ConversationPlan, shards: Shards, vocabulary_size: int) -> None:
        """Open the set. Raises as `Examples`, and DataError if the set was changed."""
        self.plan: RunPlan = plan
        shards.open(plan.prefix)
        examples = Examples(plan.prefix)
        require_same_set(plan, examples)
        _require_unchanged(plan)
        self.batches = PackedBatches(plan, examples, vocabulary_size)

    def tokens(self, samples: IntArray) -> IntArray:
        """See `StoredSamples`."""
        return np.stack([self.batches.read(sample).tokens for sample in samples.tolist()])

    def passages(self, sample: int) -> Iterator[StoredPassage]:
        """See `StoredSamples`; a document is an example."""
        examples = self.batches.examples
        for example, first, count in self.batches.training.parts(sample):
            source = examples.names("source")[examples.column("source")[example]]
            tokens = examples.read(example, first, count)[0].astype(np.int64)
            yield StoredPassage(source, examples.prefix, example, first, first + count, tokens)


def _require_unchanged(plan: ConversationPlan) -> None:
    """Raise DataError if masks or labels were changed; tokens are checked by the hashes of the steps."""
    for path, expected in (
        (targets_path(plan.prefix), plan.sha256.targets),
        (labels_path(plan.prefix), plan.sha256.labels),
    ):
        found = sha256_of(path)
        if found != expected:
            raise DataError(
                "a file was changed since the run read it",
                where=path,
                found=f"sha256 {found}",
                expected=f"sha256 {expected}",
                fix="restore the original file",
            )


def open_stored_samples(plan: RunPlan, fingerprint: str | None, vocabulary_size: int) -> StoredSamples:
    """Open the samples of a plan. The data must be of the tokenizer `fingerprint`; None accepts any."""
    shards = Shards(fingerprint)
    if isinstance(plan, ConversationPlan):
        return StoredConversations(plan, shards, vocabulary_size)
    assert isinstance(plan, MixturePlan)
    return StoredMixture(plan, shards, vocabulary_size)


def describe_location(stored: StoredSamples, sample: int) -> str:
    """Describe where a sample is on disk: "corpus math: data/math_0.bin documents 3 to 5"."""
    passages = list(stored.passages(sample))
    files = []
    for prefix, part in groupby(passages, key=lambda passage: passage.prefix):
        numbers = [passage.document for passage in part]
        first, last = numbers[0], numbers[-1]
        if isinstance(stored.plan, ConversationPlan):
            files.append(f"{prefix}.bin examples {', '.join(map(str, numbers))}")
        else:
            files.append(
                f"{prefix}.bin " + (f"document {first:,}" if first == last else f"documents {first:,} to {last:,}")
            )
    content = "conversations" if isinstance(stored.plan, ConversationPlan) else f"corpus {passages[0].name}"
    return f"{content}: {', '.join(files)}"
