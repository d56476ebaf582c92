"""Packing of examples into the sequences of an epoch, a pure function of their lengths, the seed and the epoch.

"Training examples are randomly concatenated until reaching a maximum context length" (paper, section 3.2): `next-fit`
fills a sequence with examples in random order until the next one does not fit. `best-fit` takes the longest first and
puts each into the fullest sequence that has room, which leaves less padding. `split` fills every sequence and cuts
examples at its end; the others do not cut. docs/decisions/0023-packing.md.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from threading import RLock
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.mixture.microbatch import PADDING
from megatron_dsmath.data.mixture.permutation import IntArray, permute, random_words
from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.errors import DataError

POLICIES = ("next-fit", "best-fit", "split")


class Packing(NamedTuple):
    """The sequences of an epoch as parts. A part is a range of one example, all of it unless the policy is "split".

    `examples`, `first_tokens` (within the example) and `token_counts`: int64 [parts], in the order of the sequences.
    `bounds`: int64 [sequences + 1], the first part of each sequence, then the number of parts.
    """

    examples: IntArray
    first_tokens: IntArray
    token_counts: IntArray
    bounds: IntArray

    @property
    def sequence_count(self) -> int:
        """The number of sequences."""
        return len(self.bounds) - 1


class PackedSequence(NamedTuple):
    """One sequence of training data.

    `tokens`: int64 [sequence_length + 1]; inputs are all but the last, targets all but the first. Positions from
    `token_count` on are padding.
    `loss_mask`: bool [sequence_length], whether each of `tokens[1:]` is a target of the loss.
    `document_starts`: int64, the ascending positions in `tokens` at which an example begins, from 0.
    `examples`: int64, the numbers of these examples in the set.
    """

    tokens: IntArray
    loss_mask: npt.NDArray[np.bool_]
    document_starts: IntArray
    examples: IntArray
    token_count: int

    def example_of_target(self) -> IntArray:
        """The number of the example of each target, or PADDING: int64 [sequence_length]."""
        ends = np.append(self.document_starts[1:], self.token_count)
        of_token = np.repeat(self.examples, ends - self.document_starts)
        padding = len(self.tokens) - self.token_count
        return np.pad(of_token, (0, padding), constant_values=PADDING)[1:]


class PackedExamples:
    """Examples of a set, packed into sequences for each epoch. Sequences are numbered through all epochs."""

    def __init__(
        self,
        examples: Examples,
        sequence_length: int,
        seed: int,
        policy: str,
        numbers: IntArray | None = None,
    ) -> None:
        """Pack the examples `numbers`, int64 (None: all of the set), by a `policy` of `packing.POLICIES`.

        An epoch reads each source `passes_per_epoch` times. Raises DataError where there are no examples, or one is
        longer than a sequence and the policy is not "split".
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
        self._ends: list[int] = []  # sequences up to the end of each epoch counted so far
        self._planned: dict[int, Packing] = {}
        self._lock = RLock()  # training draws batches in a thread of its own
        facts = examples.sidecar.get("tokenizer")
        end = facts.get("end_of_document") if isinstance(facts, dict) else None
        self._padding_token = 1 if end == 0 else 0  # any id other than the end of an answer

    def plan(self, epoch: int) -> Packing:
        """The sequences of an epoch. The last two epochs are cached."""
        with self._lock:
            if epoch not in self._planned:
                packing = pack(
                    self.examples.lengths, self._of_epoch(epoch), self.sequence_length, self.policy, self._seed, epoch
                )
                self._planned = {**dict(list(self._planned.items())[-1:]), epoch: packing}
            return self._planned[epoch]

    def locate(self, number: int) -> tuple[int, int]:
        """The epoch of a sequence and its number within it. Counts the sequences of each epoch before it once."""
        with self._lock:
            while not self._ends or self._ends[-1] <= number:
                before = self._ends[-1] if self._ends else 0
                self._ends.append(before + self.plan(len(self._ends)).sequence_count)
        epoch = bisect_right(self._ends, number)
        return epoch, number - (self._ends[epoch - 1] if epoch else 0)

    def read(self, number: int) -> PackedSequence:
        """Read sequence `number`, counted from 0."""
        parts, length = list(self.parts(number)), self.sequence_length
        examples, _, counts = np.array(parts, np.int64).T
        tokens = np.full(length + 1, self._padding_token, np.int64)
        is_target = np.zeros(length + 1, np.bool_)
        filled = 0
        for example, first, count in parts:
            if filled + count == length:  # where an example is cut, its next token is a target here
                count = min(count + 1, int(self.examples.lengths[example]) - first)
            end = filled + count
            tokens[filled:end], is_target[filled:end] = self.examples.read(example, first, count)
            filled = end
        starts = np.cumsum(counts) - counts
        return PackedSequence(tokens, is_target[1:], starts, examples, filled)

    def parts(self, number: int) -> Iterator[tuple[int, int, int]]:
        """The parts of a sequence: (example, its first token here, number of tokens)."""
        epoch, sequence = self.locate(number)
        packing = self.plan(epoch)
        of_sequence = slice(*packing.bounds[sequence : sequence + 2].tolist())
        columns = packing.examples, packing.first_tokens, packing.token_counts
        yield from zip(*(column[of_sequence].tolist() for column in columns), strict=True)

    def _of_epoch(self, epoch: int) -> IntArray:
        """The examples that an epoch reads. A partial pass continues where that of the previous epoch ended."""
        passes = self.examples.facts["passes_per_epoch"]
        if all(count == 1 for count in passes):
            return self.numbers
        chosen = []
        sources = self.examples.column("source")[self.numbers]
        for source, count in enumerate(passes):
            numbers = self.numbers[sources == source]
            if size := len(numbers):
                draws = round(size * count)
                indices = np.arange(epoch * draws, (epoch + 1) * draws) % size
                chosen.append(numbers[permute(indices, size, random_words(self._seed, "pass", source))])
        return np.concatenate(chosen)


def split_held_out(examples: Examples, share: float, seed: int) -> tuple[IntArray, IntArray]:
    """The numbers of the training and of the held-out examples, int64. `share` of each source is held out, rounded."""
    is_held_out = np.zeros(len(examples), np.bool_)
    sources = examples.column("source")
    for source in range(len(examples.names("source"))):
        numbers = np.flatnonzero(sources == source)
        if size := len(numbers):
            indices = np.arange(round(size * share))
            is_held_out[numbers[permute(indices, size, random_words(seed, "held out", source))]] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def pack(lengths: npt.NDArray[np.integer], examples: IntArray, capacity: int, policy: str, *label: object) -> Packing:
    """Pack `examples`, int64 [n > 0], possibly repeated, of `lengths` [all examples], into sequences of `capacity`.

    `label` seeds the order. No example may be longer than the capacity, unless the policy is "split".
    """
    order = examples[permute(np.arange(len(examples)), len(examples), random_words(*label, "order"))]
    counts = lengths[order].astype(np.int64)
    if policy == "split":
        return _split(order, counts, capacity)
    if policy == "next-fit":
        return _whole(order, counts, _next_fit(counts, capacity))
    sequence, indices = _best_fit(counts, capacity)
    sequences = int(sequence.max()) + 1
    # Best fit starts with the longest examples, so the sequences are shuffled.
    sequence = permute(np.arange(sequences), sequences, random_words(*label, "sequences"))[sequence]
    by_sequence = np.argsort(sequence, kind="stable")
    bounds = np.append(0, np.cumsum(np.bincount(sequence, minlength=sequences)))
    order = order[indices[by_sequence]]
    return _whole(order, lengths[order].astype(np.int64), bounds)


def _whole(order: IntArray, counts: IntArray, bounds: IntArray) -> Packing:
    return Packing(order, np.zeros_like(order), counts, bounds)


def _next_fit(counts: IntArray, capacity: int) -> IntArray:
    """The first example of each sequence when sequences are filled in order, then the number of examples."""
    ends = np.append(0, np.cumsum(counts))
    # The first example of the next sequence, for each example that could begin a sequence.
    following = (np.searchsorted(ends, ends[:-1] + capacity, side="right") - 1).tolist()
    bounds = [0]
    while bounds[-1] < len(counts):
        bounds.append(following[bounds[-1]])
    return np.array(bounds, np.int64)


def _split(order: IntArray, counts: IntArray, capacity: int) -> Packing:
    ends = np.cumsum(counts)
    total = int(ends[-1])
    cuts = np.arange(0, total, capacity)
    starts = np.sort(np.concatenate([ends - counts, cuts]), kind="stable")  # two sorted halves: linear time
    starts = starts[np.diff(starts, prepend=-1) > 0]
    rows = np.searchsorted(ends, starts, side="right")
    bounds = np.append(np.searchsorted(starts, cuts), len(starts))
    return Packing(order[rows], starts - (ends - counts)[rows], np.diff(np.append(starts, total)), bounds)


def _best_fit(counts: IntArray, capacity: int) -> tuple[IntArray, IntArray]:
    """The sequence of each example and its index in `counts`, both int64 [n], with the longest example first.

    Examples of the same length are placed together, since sequences with the same room are equivalent. The work grows
    with the number of different lengths, not of examples.
    """
    # NumPy sorts integers of at most 16 bits in linear time.
    indices = np.argsort((capacity - counts).astype(np.min_scalar_type(capacity)), kind="stable")
    of_length = np.bincount(counts, minlength=capacity + 1).tolist()
    rooms = _Rooms(capacity)
    placed: list[IntArray] = []
    for length in range(capacity, 0, -1):
        waiting = of_length[length]
        while waiting:
            room, takers = rooms.take(length, waiting)
            most = room // length
            full, rest = divmod(waiting, most)
            if full >= len(takers):
                full, rest = len(takers), 0
            parts = ((takers[:full], most), (takers[full : full + 1], rest), (takers[full + 1 :], 0))
            for sequences, taken in parts:
                placed.append(np.repeat(sequences, taken))
                rooms.put(room - taken * length, sequences)
                waiting -= taken * len(sequences)
    return np.concatenate(placed), indices


class _Rooms:
    """Sequences by their room: the number of tokens that still fit."""

    def __init__(self, capacity: int) -> None:
        self._sequences: list[list[IntArray]] = [[] for _ in range(capacity + 1)]
        self._bits = 0  # bit r: there is a sequence with room r, so the smallest sufficient room is found at once
        self._capacity, self._count = capacity, 0

    def take(self, length: int, waiting: int) -> tuple[int, IntArray]:
        """The least sufficient room for `length` and its sequences; without any, new sequences for all `waiting`."""
        fitting = self._bits >> length
        if not fitting:
            first = self._count
            self._count += -(-waiting // (self._capacity // length))
            return self._capacity, np.arange(first, self._count)
        room = length + (fitting & -fitting).bit_length() - 1
        sequences = self._sequences[room].pop()
        if not self._sequences[room]:
            self._bits ^= 1 << room
        return room, sequences

    def put(self, room: int, sequences: IntArray) -> None:
        """Add `sequences` that have `room` left."""
        if room and len(sequences):
            self._sequences[room].append(sequences)
            self._bits |= 1 << room
