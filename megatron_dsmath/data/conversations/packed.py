"""Packed sequence number -> its tokens, mask and documents: a pure function of the set, the seed and the number.

Sequences are numbered on through the epochs, each of which is packed anew.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.conversations.examples import Examples
from megatron_dsmath.data.conversations.packing import Packing, pack
from megatron_dsmath.data.mixture.permutation import IntArray, permute, random_words
from megatron_dsmath.errors import DataError

PADDING = -1


class PackedSequence(NamedTuple):
    """One sequence, as training reads it.

    `tokens`: int64 [sequence_length + 1]; inputs are all but the last, targets all but the first. What no example
    fills is padding, told by its place: from `token_count` on.
    `loss_mask`: bool [sequence_length], whether the target, `tokens[1:]`, is learned.
    `document_starts`: int64, rising: 0, and every place in `tokens` at which an example begins.
    `examples`: int64, the numbers of these examples in the set.
    """

    tokens: IntArray
    loss_mask: npt.NDArray[np.bool_]
    document_starts: IntArray
    examples: IntArray
    token_count: int

    def example_of_target(self) -> IntArray:
        """Of each target the number of its example, PADDING where there is none: int64 [sequence_length]."""
        ends = np.append(self.document_starts[1:], self.token_count)
        of_token = np.repeat(self.examples, ends - self.document_starts)
        padding = len(self.tokens) - self.token_count
        return np.pad(of_token, (0, padding), constant_values=PADDING)[1:]


class PackedExamples:
    """Some examples of a set, packed into sequences, epoch after epoch."""

    def __init__(
        self,
        examples: Examples,
        sequence_length: int,
        seed: int,
        policy: str,
        numbers: IntArray | None = None,
    ) -> None:
        """Pack the examples `numbers`, int64 (None: all of the set), by a `policy` of `packing.POLICIES`.

        An epoch reads those of a source as often as its `passes_per_epoch` says. Raises DataError where there is none,
        or one is longer than a sequence and may not be split.
        """
        self.examples, self.sequence_length, self.policy = examples, sequence_length, policy
        self._seed = seed
        self.numbers = np.arange(len(examples)) if numbers is None else numbers
        if not len(self.numbers):
            raise DataError("there is no example to pack", where=examples.prefix, expected="at least one")
        longest = int(examples.lengths[self.numbers].max())
        if policy != "split" and longest > sequence_length:
            raise DataError(
                "an example is longer than a sequence",
                where=examples.prefix,
                found=f"{longest:,} tokens",
                expected=f"at most {sequence_length:,}",
                fix="build the set with this --sequence-length, or train on longer sequences",
            )
        self._ends: list[int] = []  # of the epochs counted so far: sequences up to their end
        self._planned: dict[int, Packing] = {}
        facts = examples.sidecar.get("tokenizer")
        end = facts.get("end_of_document") if isinstance(facts, dict) else None
        self._padding_token = 1 if end == 0 else 0  # any id but the one that ends an answer

    def plan(self, epoch: int) -> Packing:
        """The sequences of an epoch; the last two asked for are kept."""
        if epoch not in self._planned:
            packing = pack(
                self.examples.lengths, self._of_epoch(epoch), self.sequence_length, self.policy, self._seed, epoch
            )
            self._planned = {**dict(list(self._planned.items())[-1:]), epoch: packing}
        return self._planned[epoch]

    def locate(self, number: int) -> tuple[int, int]:
        """The epoch of a sequence and its number within. Counts the sequences of every epoch before it, once."""
        while not self._ends or self._ends[-1] <= number:
            before = self._ends[-1] if self._ends else 0
            self._ends.append(before + self.plan(len(self._ends)).sequence_count)
        epoch = bisect_right(self._ends, number)
        return epoch, number - (self._ends[epoch - 1] if epoch else 0)

    def read(self, number: int) -> PackedSequence:
        """Sequence `number`, from 0 on."""
        pieces, length = list(self.pieces(number)), self.sequence_length
        examples, _, counts = np.array(pieces, np.int64).T
        tokens = np.full(length + 1, self._padding_token, np.int64)
        is_target = np.zeros(length + 1, np.bool_)
        filled = 0
        for example, first, count in pieces:
            if filled + count == length:  # an example that was split here goes on: its next token is a target here
                count = min(count + 1, int(self.examples.lengths[example]) - first)
            end = filled + count
            tokens[filled:end], is_target[filled:end] = self.examples.read(example, first, count)
            filled = end
        starts = np.cumsum(counts) - counts
        return PackedSequence(tokens, is_target[1:], starts, examples, filled)

    def pieces(self, number: int) -> Iterator[tuple[int, int, int]]:
        """What a sequence is packed of: example, first token in it, number of tokens."""
        epoch, sequence = self.locate(number)
        packing = self.plan(epoch)
        of_sequence = slice(*packing.bounds[sequence : sequence + 2].tolist())
        columns = packing.examples, packing.first_tokens, packing.token_counts
        yield from zip(*(column[of_sequence].tolist() for column in columns), strict=True)

    def _of_epoch(self, epoch: int) -> IntArray:
        """The examples an epoch reads. Parts of a pass go on where the epoch before stopped."""
        passes = self.examples.facts["passes_per_epoch"]
        if all(count == 1 for count in passes):
            return self.numbers
        chosen = []
        sources = self.examples.column("source")[self.numbers]
        for source, count in enumerate(passes):
            numbers = self.numbers[sources == source]
            if size := len(numbers):
                draws = round(size * count)
                places = np.arange(epoch * draws, (epoch + 1) * draws) % size
                chosen.append(numbers[permute(places, size, random_words(self._seed, "pass", source))])
        return np.concatenate(chosen)


def held_out_split(examples: Examples, share: float, seed: int) -> tuple[IntArray, IntArray]:
    """The numbers of the examples to train on and of those to validate on, int64: `share` of each source, rounded."""
    is_held_out = np.zeros(len(examples), np.bool_)
    sources = examples.column("source")
    for source in range(len(examples.names("source"))):
        numbers = np.flatnonzero(sources == source)
        if size := len(numbers):
            places = np.arange(round(size * share))
            is_held_out[numbers[permute(places, size, random_words(seed, "held out", source))]] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)
