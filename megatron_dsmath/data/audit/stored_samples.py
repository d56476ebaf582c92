"""The samples of a run as they lie on the disk now, for those who check or show them: of a mixture or of a set."""

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
class ShownPassage:
    """What a sample holds of one document: its tokens from `first_token` to before `end_token`, as text.

    Of conversations, a document is an example, and `corpus` its source.
    A passage may begin or end within a character; what is left of it stands as U+FFFD.
    """

    sample: int
    corpus: str
    shard: str
    document: int
    first_token: int
    end_token: int
    text: str


def step_passages(run: Path, step: int) -> Iterator[ShownPassage]:
    """What the run in the directory `run` read in `step`, sample by sample.

    Raises ConfigError where it is no run's directory, DataError for its ledger or files, UsageError for a step that
    the ledger does not hold.
    """
    config = load(run / "run.yaml")
    ledger = Ledger(run / "ledger")
    rows = {row.step: row for row in ledger.rows()}
    if step not in rows:
        raise UsageError(
            "the run has no such step",
            where="--step",
            found=step,
            expected=f"1 to {max(rows)}" if rows else "a run that has made a step",
        )
    tokenizer = load_tokenizer(config.data.tokenizer)
    disk = on_disk(ledger.plan(), tokenizer.fingerprint, config.model.vocabulary_size)
    for sample in range(rows[step].first_sample, rows[step].end_sample):
        for passage in disk.passages(sample):
            yield ShownPassage(
                sample,
                passage.name,
                str(passage.prefix),
                passage.document,
                passage.first,
                passage.end,
                tokenizer.decode(passage.tokens.tolist()),
            )


def print_passages(passages: Iterable[ShownPassage], as_json: bool) -> None:
    """Each passage under a line that says where it lies, or a JSON list of all of them."""
    if as_json:
        print(json.dumps([asdict(passage) for passage in passages], indent=1, ensure_ascii=False))
        return
    for passage in passages:
        place = f"document {passage.document:,}, tokens {passage.first_token:,} to {passage.end_token - 1:,}"
        print(f"--- sample {passage.sample:,}: {passage.corpus}, {passage.shard}, {place}")
        print(passage.text)


class StoredPassage(NamedTuple):
    """What a sample holds of one document or example; `name`: its corpus, or its source."""

    name: str
    prefix: Path
    document: int
    first: int
    end: int
    tokens: IntArray


class OnDisk(Protocol):
    """How the samples of a run are read back."""

    plan: RunPlan

    def tokens(self, samples: IntArray) -> IntArray:
        """Their tokens, of one version of the plan: int64 [n] to int64 [n, sequence_length + 1].

        Raises IndexedDatasetError for a token beyond the vocabulary.
        """

    def passages(self, sample: int) -> Iterator[StoredPassage]:
        """What a sample holds, in order."""


class MixtureOnDisk:
    """The corpora of a plan."""

    def __init__(self, plan: MixturePlan, shards: Shards, vocabulary_size: int) -> None:
        """Open those of the newest version. Raises as `Shards.open_planned`."""
        self.plan: RunPlan = plan
        self._batches = MixtureBatches(plan, shards, vocabulary_size)

    def tokens(self, samples: IntArray) -> IntArray:
        """See `OnDisk`."""
        mixture = self._batches.mixture(self.plan.version_at(int(samples[0])))
        places = zip(*(column.tolist() for column in mixture.locate(samples)), strict=True)
        return np.stack([mixture.training[corpus].window_tokens(epoch, start) for corpus, epoch, start in places])

    def passages(self, sample: int) -> Iterator[StoredPassage]:
        """See `OnDisk`."""
        for corpus, passage in self._batches.mixture(self.plan.version_at(sample)).passages(sample):
            _, document, first, end, tokens = passage
            yield StoredPassage(corpus, passage.shard.prefix, document, first, end, tokens)


class ConversationsOnDisk:
    """The set of a plan."""

    def __init__(self, plan: ConversationPlan, shards: Shards, vocabulary_size: int) -> None:
        """Open it. Raises as `Examples`, and DataError where it is another set."""
        self.plan: RunPlan = plan
        shards.open(plan.prefix)
        examples = Examples(plan.prefix)
        require_same_set(plan, examples)
        _require_unchanged(plan)
        self.batches = PackedBatches(plan, examples, vocabulary_size)

    def tokens(self, samples: IntArray) -> IntArray:
        """See `OnDisk`."""
        return np.stack([self.batches.read(sample).tokens for sample in samples.tolist()])

    def passages(self, sample: int) -> Iterator[StoredPassage]:
        """See `OnDisk`; a document is an example."""
        examples = self.batches.examples
        for example, first, count in self.batches.training.parts(sample):
            source = examples.names("source")[examples.column("source")[example]]
            tokens = examples.read(example, first, count)[0].astype(np.int64)
            yield StoredPassage(source, examples.prefix, example, first, first + count, tokens)


def _require_unchanged(plan: ConversationPlan) -> None:
    """Raise DataError where masks or labels are not what the run read; tokens are checked by the hash of their step."""
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
                fix="put a changed file back as it was",
            )


def on_disk(plan: RunPlan, fingerprint: str | None, vocabulary_size: int) -> OnDisk:
    """The samples of a plan; `fingerprint` of the tokenizer they must be of, None compares none."""
    shards = Shards(fingerprint)
    if isinstance(plan, ConversationPlan):
        return ConversationsOnDisk(plan, shards, vocabulary_size)
    assert isinstance(plan, MixturePlan)
    return MixtureOnDisk(plan, shards, vocabulary_size)


def place_of(disk: OnDisk, sample: int) -> str:
    """Where a sample lies: "corpus math: data/math_0.bin documents 3 to 5"."""
    passages = list(disk.passages(sample))
    files = []
    for prefix, part in groupby(passages, key=lambda passage: passage.prefix):
        numbers = [passage.document for passage in part]
        first, last = numbers[0], numbers[-1]
        if isinstance(disk.plan, ConversationPlan):
            files.append(f"{prefix}.bin examples {', '.join(map(str, numbers))}")
        else:
            files.append(
                f"{prefix}.bin " + (f"document {first:,}" if first == last else f"documents {first:,} to {last:,}")
            )
    held = "conversations" if isinstance(disk.plan, ConversationPlan) else f"corpus {passages[0].name}"
    return f"{held}: {', '.join(files)}"
