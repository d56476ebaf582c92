"""The batch that every layout computes: random tokens, and in each sequence something that tells it from the others.

Sequence number i alone contains token i. Row i of the embedding's gradient therefore comes from that sequence alone,
and tells whether its share of the gradient arrived, and with which weight. The sequences differ in their number of
targets; the first has none, as padding at the end of a validation set.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.config.run import RunConfig

GROUPS = 2
OWN_TOKEN_EVERY = 8  # positions
FIRST_OWN_TOKEN = 2
FIRST_DOCUMENT = 5  # the shortest that a sequence begins with, in tokens; it holds the sequence's own token


class GlobalBatch(NamedTuple):
    """The sequences of one step, in order."""

    tokens: npt.NDArray[np.int64]  # [sequences, sequence + 1]
    loss_mask: npt.NDArray[np.float32]  # [sequences, sequence], 1.0 for a target
    groups: npt.NDArray[np.int64]  # [sequences, 1, 1]
    document_starts: list[npt.NDArray[np.int64]]  # for each sequence, 0 included


def global_batch(run: RunConfig, step: int) -> GlobalBatch:
    """The batch of a step; the same in every layout."""
    draw = np.random.default_rng([run.seed, step])
    sequences, length = run.schedule.sequences_per_step, run.data.sequence_length
    tokens = draw.integers(sequences, run.model.vocabulary_size, (sequences, length + 1))
    tokens[:, FIRST_OWN_TOKEN::OWN_TOKEN_EVERY] = np.arange(sequences)[:, None]
    shares = np.linspace(0, 1, sequences)[:, None]
    loss_mask = (draw.random((sequences, length)) < shares).astype(np.float32)
    loss_mask[1:, FIRST_OWN_TOKEN] = 1.0
    # From one document to four; the shortest first one bounds where packing can show.
    cuts = [draw.integers(FIRST_DOCUMENT, length, index % 4) for index in range(sequences)]
    cuts[1][0] = FIRST_DOCUMENT
    starts = [np.unique(np.append(0, cut)) for cut in cuts]
    return GlobalBatch(tokens, loss_mask, draw.integers(0, GROUPS, (sequences, 1, 1)), starts)


def sequences_of(run: RunConfig, data_rank: int, data_size: int) -> list[slice]:
    """The sequences of each microbatch of a data-parallel rank, dealt as `data.batches.Batches.at` deals them."""
    size = run.parallel.microbatch_sequences
    firsts = range(data_rank * size, run.schedule.sequences_per_step, data_size * size)
    return [slice(first, first + size) for first in firsts]
