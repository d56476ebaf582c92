"""An epoch of examples to sequences: who stands beside whom, a pure function of lengths, seed and epoch.

"Training examples are randomly concatenated until reaching a maximum context length" (paper, section 3.2): examples
in a random order fill a sequence until the next does not fit (`next-fit`). `best-fit` puts the longest first, each into
the fullest sequence that has room for it, for fewer pads. Both keep examples whole; `split` cuts them where a sequence
is full. docs/decisions/0023-packing.md.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.mixture.permutation import IntArray, permute, random_words

POLICIES = ("next-fit", "best-fit", "split")


class Packing(NamedTuple):
    """Sequences of pieces; a piece is what a sequence holds of one example, all of it unless the policy splits.

    `examples`, `first_tokens` (within the example) and `token_counts`: int64 [pieces], in the order of the sequences.
    `bounds`: int64 [sequences + 1], the first piece of each sequence, then the number of pieces.
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
