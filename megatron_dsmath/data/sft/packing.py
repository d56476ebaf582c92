"""An epoch of examples to sequences: who stands beside whom, a pure function of lengths, seed and epoch.

"Training examples are randomly concatenated until reaching a maximum context length" (paper, section 3.2): examples
in a random order fill a sequence until the next does not fit (`next-fit`). `best-fit` puts the longest first, each into
the fullest sequence that has room for it, for fewer pads. Both keep examples whole; `split` cuts them where a sequence
is full. docs/decisions/0023-packing.md.
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
        self._lock = RLock()  # training draws batches in a thread of its own
        facts = examples.sidecar.get("tokenizer")
        end = facts.get("end_of_document") if isinstance(facts, dict) else None
        self._padding_token = 1 if end == 0 else 0  # any id but the one that ends an answer

    def plan(self, epoch: int) -> Packing:
        """The sequences of an epoch; the last two asked for are kept."""
        with self._lock:
            if epoch not in self._planned:
                packing = pack(
                    self.examples.lengths, self._of_epoch(epoch), self.sequence_length, self.policy, self._seed, epoch
                )
                self._planned = {**dict(list(self._planned.items())[-1:]), epoch: packing}
            return self._planned[epoch]

    def locate(self, number: int) -> tuple[int, int]:
        """The epoch of a sequence and its number within. Counts the sequences of every epoch before it, once."""
        with self._lock:
            while not self._ends or self._ends[-1] <= number:
                before = self._ends[-1] if self._ends else 0
                self._ends.append(before + self.plan(len(self._ends)).sequence_count)
        epoch = bisect_right(self._ends, number)
        return epoch, number - (self._ends[epoch - 1] if epoch else 0)

    def read(self, number: int) -> PackedSequence:
        """Sequence `number`, from 0 on."""
        parts, length = list(self.parts(number)), self.sequence_length
        examples, _, counts = np.array(parts, np.int64).T
        tokens = np.full(length + 1, self._padding_token, np.int64)
        is_target = np.zeros(length + 1, np.bool_)
        filled = 0
        for example, first, count in parts:
            if filled + count == length:  # an example that was split here goes on: its next token is a target here
                count = min(count + 1, int(self.examples.lengths[example]) - first)
            end = filled + count
            tokens[filled:end], is_target[filled:end] = self.examples.read(example, first, count)
            filled = end
        starts = np.cumsum(counts) - counts
        return PackedSequence(tokens, is_target[1:], starts, examples, filled)

    def parts(self, number: int) -> Iterator[tuple[int, int, int]]:
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


def split_held_out(examples: Examples, share: float, seed: int) -> tuple[IntArray, IntArray]:
    """The numbers of the examples to train on and of those to validate on, int64: `share` of each source, rounded."""
    is_held_out = np.zeros(len(examples), np.bool_)
    sources = examples.column("source")
    for source in range(len(examples.names("source"))):
        numbers = np.flatnonzero(sources == source)
        if size := len(numbers):
            places = np.arange(round(size * share))
            is_held_out[numbers[permute(places, size, random_words(seed, "held out", source))]] = True
    return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


POLICIES = ("next-fit", "best-fit", "split")


class Packing(NamedTuple):
    """Sequences of parts; a part is what a sequence holds of one example, all of it unless the policy splits.

    `examples`, `first_tokens` (within the example) and `token_counts`: int64 [parts], in the order of the sequences.
    `bounds`: int64 [sequences + 1], the first part of each sequence, then the number of parts.
    """

    examples: IntArray
    first_tokens: IntArray
    token_counts: IntArray
    bounds: IntArray

    @property
    def sequence_count(self) -> int:
        """How many sequences there are."""
        return len(self.bounds) - 1


def pack(lengths: npt.NDArray[np.integer], examples: IntArray, capacity: int, policy: str, *label: object) -> Packing:
    """Pack the `examples`, int64 [n > 0] (one may stand there twice), of `lengths` [all], into sequences of `capacity`.

    `label` decides the order. No example is longer than the capacity, unless the policy is "split".
    """
    order = examples[permute(np.arange(len(examples)), len(examples), random_words(*label, "order"))]
    counts = lengths[order].astype(np.int64)
    if policy == "split":
        return _split(order, counts, capacity)
    if policy == "next-fit":
        return _whole(order, counts, _next_fit(counts, capacity))
    sequence, places = _best_fit(counts, capacity)
    sequences = int(sequence.max()) + 1
    # Best fit makes sequences of long examples first: their order is drawn anew.
    sequence = permute(np.arange(sequences), sequences, random_words(*label, "sequences"))[sequence]
    by_sequence = np.argsort(sequence, kind="stable")
    bounds = np.append(0, np.cumsum(np.bincount(sequence, minlength=sequences)))
    order = order[places[by_sequence]]
    return _whole(order, lengths[order].astype(np.int64), bounds)


def _whole(order: IntArray, counts: IntArray, bounds: IntArray) -> Packing:
    return Packing(order, np.zeros_like(order), counts, bounds)


def _next_fit(counts: IntArray, capacity: int) -> IntArray:
    """Where sequences begin that are filled in order, each until the next example does not fit; then the end."""
    ends = np.append(0, np.cumsum(counts))
    # For each example, the one that begins the next sequence if it begins one; then hop from first to first.
    following = (np.searchsorted(ends, ends[:-1] + capacity, side="right") - 1).tolist()
    bounds = [0]
    while bounds[-1] < len(counts):
        bounds.append(following[bounds[-1]])
    return np.array(bounds, np.int64)


def _split(order: IntArray, counts: IntArray, capacity: int) -> Packing:
    ends = np.cumsum(counts)
    total = int(ends[-1])
    cuts = np.arange(0, total, capacity)
    starts = np.sort(np.concatenate([ends - counts, cuts]), kind="stable")  # of two sorted halves: linear time
    starts = starts[np.diff(starts, prepend=-1) > 0]
    rows = np.searchsorted(ends, starts, side="right")
    bounds = np.append(np.searchsorted(starts, cuts), len(starts))
    return Packing(order[rows], starts - (ends - counts)[rows], np.diff(np.append(starts, total)), bounds)


def _best_fit(counts: IntArray, capacity: int) -> tuple[IntArray, IntArray]:
    """The sequence of each example and its place in `counts`, both int64 [n], the longest first.

    Examples of one length are placed together: sequences with the same room left take their next examples alike, so
    the work grows with the number of different lengths, not of examples.
    """
    # Of 16 bits and fewer numpy sorts in linear time.
    places = np.argsort((capacity - counts).astype(np.min_scalar_type(capacity)), kind="stable")
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
    return np.concatenate(placed), places


class _Rooms:
    """Sequences by the tokens they have left."""

    def __init__(self, capacity: int) -> None:
        self._sequences: list[list[IntArray]] = [[] for _ in range(capacity + 1)]
        self._bits = 0  # of each room whether there is a sequence: the smallest above a length is found at once
        self._capacity, self._count = capacity, 0

    def take(self, length: int, waiting: int) -> tuple[int, IntArray]:
        """Sequences with the least room for an example of `length`, and that room; else new ones for all `waiting`."""
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
        """Note that `sequences` have `room` left."""
        if room and len(sequences):
            self._sequences[room].append(sequences)
            self._bits |= 1 << room
