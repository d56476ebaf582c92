from __future__ import annotations

from typing import NamedTuple

import torch

from megatron_dsmath.model.loss import sum_by_group


class Batch(NamedTuple):
    loss_mask: torch.Tensor
    groups: torch.Tensor


NATS = torch.tensor([[1.0, 2.0, 4.0], [8.0, 16.0, 32.0], [64.0, 128.0, 256.0]])
BATCH = Batch(
    loss_mask=torch.tensor([[1.0, 0.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]),
    groups=torch.tensor([1, 0, 2])[:, None, None],
)


def test_sums_and_counts_include_only_targets() -> None:
    nats, tokens, report = sum_by_group(NATS, BATCH, groups=4)
    assert nats.item() == 1 + 4 + 8 + 16 + 32
    assert tokens.item() == 5
    assert report.tolist() == [[56.0, 3.0], [5.0, 2.0], [0.0, 0.0], [0.0, 0.0]]


def test_sequences_of_one_corpus_add_up() -> None:
    _, _, report = sum_by_group(NATS, BATCH._replace(groups=torch.zeros(3, 1, 1).long()), groups=1)
    assert report.tolist() == [[61.0, 5.0]]


def test_counts_are_integers_and_the_report_is_fp64() -> None:
    """megatron-core adds the counts up as integers; 10 million tokens of 10 nats leave fp32 one digit."""
    _, tokens, report = sum_by_group(NATS, BATCH, groups=3)
    assert tokens.dtype == torch.int32
    assert report.dtype == torch.float64
    assert not report.requires_grad


def test_a_token_outside_the_targets_has_no_gradient() -> None:
    nats = NATS.clone().requires_grad_()
    sum_by_group(nats, BATCH, groups=3)[0].backward()
    assert nats.grad is not None
    assert torch.equal(nats.grad, BATCH.loss_mask)


def test_any_split_of_a_batch_gives_the_same_sums() -> None:
    whole = sum_by_group(NATS, BATCH, groups=3)
    for cut in (1, 2):
        parts = [
            sum_by_group(NATS[rows], Batch(BATCH.loss_mask[rows], BATCH.groups[rows]), groups=3)
            for rows in (slice(None, cut), slice(cut, None))
        ]
        for one, other, both in zip(*parts, whole, strict=True):
            assert torch.equal(one + other, both)
