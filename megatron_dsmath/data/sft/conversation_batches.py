"""The microbatches of packed conversations for each step and rank, a pure function of the step.

`PackedBatches` is a `RunBatches` like `MixtureBatches`. A sequence has several examples, so groups are per target.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from copy import copy
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.indexed.dataset import bin_path
from megatron_dsmath.data.mixture.microbatch import PADDING, Microbatch
from megatron_dsmath.data.mixture.mixture_batches import require_whole_microbatches
from megatron_dsmath.data.mixture.permutation import IntArray
from megatron_dsmath.data.mixture.samples import Passage
from megatron_dsmath.data.sft.conversation_plan import ConversationPlan
from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.data.sft.packing import PackedExamples, PackedSequence, split_held_out
from megatron_dsmath.errors import DataError, IndexedDatasetError

GROUPS = ("kind", "language", "source")


class PackedBatches:
    """The batches of a run from a set of examples. They do not depend on ranks, microbatches or the machine.

    `group_names`: the names of `groups`: kinds, languages and sources, as `kind/cot`, `language/en`, `source/gsm8k`.
    `training`, `validation_set`: the sequences of each; `validation_set` is None where nothing is held out.
    """

    def __init__(self, plan: ConversationPlan, examples: Examples, vocabulary_size: int) -> None:
        """Raise DataError as `PackedExamples`, or where the held-out share of every source is less than one example."""
        training, held_out = split_held_out(examples, plan.held_out_share, plan.seed)
        self.plan, self.examples, self._vocabulary_size = plan, examples, vocabulary_size
        packing = (plan.sequence_length, plan.seed, plan.packing)
        self.training = PackedExamples(examples, *packing, training)
        if plan.held_out_share and not len(held_out):
            raise DataError(
                "every source has too few conversations to hold one out",
                where="data.held_out_share",
                found=f"{plan.held_out_share:g} of {len(examples):,} examples",
                expected="at least one example",
                fix="raise data.held_out_share, or set it to 0.0 to train without validation",
            )
        self.validation_set = PackedExamples(examples, *packing, held_out) if len(held_out) else None
        counts = [len(examples.names(group)) for group in GROUPS]
        self.group_names = tuple(f"{group}/{name}" for group in GROUPS for name in examples.names(group))
        self._first_index = (np.cumsum(counts) - counts).astype(np.int32)

    def with_plan(self, plan: ConversationPlan) -> PackedBatches:
        """The same batches with a later plan. Packing does not depend on skipped sequences."""
        later = copy(self)
        later.plan = plan
        return later

    def step_batches(
        self, first_sample: int, samples: int, microbatch_sequences: int, data_rank: int, data_size: int
    ) -> list[Microbatch]:
        """This rank's microbatches of a step: its part of the `samples` sequences from `first_sample` on.

        The microbatches of all ranks at the same index are consecutive sequences, as in `MixtureBatches`. Raises
        LayoutError where they cannot be divided evenly.
        """
        require_whole_microbatches(samples, microbatch_sequences, data_size)
        numbers = np.arange(first_sample, first_sample + samples)
        return list(self._microbatches(self.training, numbers, microbatch_sequences, data_rank, data_size))

    def validation_batches(
        self, sequences: int, microbatch_sequences: int, data_rank: int, data_size: int
    ) -> list[Microbatch]:
        """This rank's microbatches of the first `sequences` held-out sequences, or of all where there are fewer.

        Every rank gets the same number, so the last are filled with rows of PADDING.
        """
        if self.validation_set is None:
            return []
        count = min(sequences, self.validation_set.plan(0).sequence_count)
        padding = -count % (microbatch_sequences * data_size)
        numbers = np.pad(np.arange(count), (0, padding), constant_values=PADDING)
        return list(self._microbatches(self.validation_set, numbers, microbatch_sequences, data_rank, data_size))

    def validation_loss(self, sample: int, whole: float, by_name: Mapping[str, float | None]) -> float:
        """The mean over all targets, because held-out conversations have the same proportions as those for training."""
        return whole

    def epochs(self, sample: int) -> dict[str, float]:
        """How often the examples of each group were read before `sample`, on average."""
        epoch, sequence = self.training.locate(sample)
        passes = epoch + sequence / self.training.plan(epoch).sequence_count
        return {name: passes * often for name, often in self._passes_per_epoch.items()}

    @cached_property
    def _passes_per_epoch(self) -> dict[str, float]:
        """How often an epoch reads the training examples of each group, on average."""
        numbers = self.training.numbers
        of_example = np.array(self.examples.facts["passes_per_epoch"])[self.examples.column("source")[numbers]]
        groups = self._groups(numbers)
        counts = np.bincount(groups.ravel(), minlength=len(self.group_names))
        sums = np.bincount(groups.ravel(), np.repeat(of_example, len(GROUPS)), len(self.group_names))
        return dict(zip(self.group_names, (sums / np.maximum(counts, 1)).tolist(), strict=True))

    def passages(self, sample: int) -> Iterator[dict[str, Any]]:
        """The examples of a sequence: their source, kind, language, file and line."""
        for example in self.training.read(sample).examples.tolist():
            labels = {name: self.examples.column(name)[example] for name in ("source", "kind", "language", "file")}
            yield {
                "example": example,
                **{name: self.examples.names(name)[index] for name, index in labels.items()},
                "line": int(self.examples.column("line")[example]),
            }

    def read_passages(self, sample: int) -> Iterator[tuple[str, Passage]]:
        """The name of the source and the tokens of each example of a sequence."""
        for example, first, count in self.training.parts(sample):
            source = self.examples.names("source")[self.examples.column("source")[example]]
            tokens = self.examples.read(example, first, count)[0].astype(np.int64)
            yield source, Passage(self.examples.prefix, example, first, first + count, tokens)

    def tokens(self, samples: IntArray) -> IntArray:
        """See `RunBatches`."""
        return np.stack([self.read(sample).tokens for sample in samples.tolist()])

    def read(self, sample: int) -> PackedSequence:
        """Read a sequence of the run. Raises IndexedDatasetError for a token beyond the vocabulary."""
        return self._read(self.training, sample)

    def _read(self, packed: PackedExamples, number: int) -> PackedSequence:
        sequence = packed.read(number)
        largest = int(sequence.tokens.max())
        if largest >= self._vocabulary_size:
            raise IndexedDatasetError(
                "a token id is beyond the model's vocabulary",
                where=f"{bin_path(self.examples.prefix)}, one of the examples {sequence.examples.tolist()}",
                found=largest,
                expected=f"0 to {self._vocabulary_size - 1:,} (model.vocabulary_size {self._vocabulary_size:,})",
                fix="build the set again",
            )
        return sequence

    def _microbatches(
        self, packed: PackedExamples, numbers: IntArray, size: int, data_rank: int, data_size: int
    ) -> Iterator[Microbatch]:
        for row_numbers in numbers.reshape(-1, data_size, size)[:, data_rank]:
            # A row of padding is any sequence, without targets.
            read = [self._read(packed, max(0, number)) for number in row_numbers.tolist()]
            counts = row_numbers[:, None] != PADDING
            owners = np.where(counts, np.stack([row.example_of_target() for row in read]), PADDING)
            yield Microbatch(
                tokens=np.stack([row.tokens for row in read]),
                loss_mask=np.stack([row.loss_mask for row in read]) & counts,
                groups=self._groups(owners),
                document_starts=[row.document_starts for row in read],
                samples=row_numbers,
            )

    def _groups(self, owners: IntArray) -> npt.NDArray[np.int32]:
        """Kind, language and source of each target's example, as indices into `group_names`."""
        columns = [self.examples.column(group)[owners] for group in GROUPS]  # at PADDING the last example's
        groups = np.stack(columns, axis=-1) + self._first_index
        return np.where(owners[..., None] == PADDING, np.int32(PADDING), groups).astype(np.int32)
