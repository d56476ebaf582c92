from __future__ import annotations

import numpy as np

from megatron_dsmath.config import load
from megatron_dsmath.verify_layouts.measure import FIRST_DOCUMENT, global_batch, microbatch_rows
from megatron_dsmath.verify_layouts.shrink import shrink_run

RUN = shrink_run(load("configs/pretrain/deepseekmath_base_7b.yaml"), 4)


def test_a_sequences_own_token_is_in_no_other_sequence_and_is_a_target() -> None:
    batch = global_batch(RUN, 0)
    for sequence in range(len(batch.tokens)):
        holders = np.flatnonzero((batch.tokens == sequence).any(1))
        assert holders.tolist() == [sequence]
    own = batch.tokens[:, :-1] == np.arange(len(batch.tokens))[:, None]
    assert ((own * batch.loss_mask).sum(1) > 0).tolist() == [False] + [True] * (len(batch.tokens) - 1)


def test_sequences_have_different_numbers_of_targets_and_the_first_has_none() -> None:
    targets = global_batch(RUN, 0).loss_mask.sum(1)
    assert targets[0] == 0
    assert len(set(targets.tolist())) > len(targets) / 2


def test_steps_have_different_tokens_and_sequences_different_documents() -> None:
    first, second = global_batch(RUN, 0), global_batch(RUN, 1)
    assert not np.array_equal(first.tokens, second.tokens)
    counts = {len(starts) for starts in first.document_starts}
    assert 1 in counts and max(counts) > 2
    assert min(starts[1] for starts in first.document_starts if len(starts) > 1) == FIRST_DOCUMENT


def test_each_row_is_in_a_microbatch_of_one_data_parallel_rank() -> None:
    rows = [row for rank in range(2) for part in microbatch_rows(RUN, rank, 2) for row in range(part.start, part.stop)]
    assert sorted(rows) == list(range(RUN.schedule.sequences_per_step))
