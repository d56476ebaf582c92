"""What a batch loses: a sum of nats and a count of tokens, whole and by corpus; dividing comes last.

Means of means depend on how a batch is cut; sums and counts do not (Megatron-LM issues 673, 936, 4590).
"""

from __future__ import annotations

from typing import Protocol

import torch


class LabelledBatch(Protocol):
    """A microbatch as the loss sees it."""

    @property
    def loss_mask(self) -> torch.Tensor:
        """[microbatch, sequence], 1.0 where the next token is a target."""

    @property
    def corpus(self) -> torch.Tensor:
        """[microbatch], which corpus each sequence is of."""


def sums_by_corpus(
    nats: torch.Tensor, batch: LabelledBatch, corpora: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum of nats, the number of target tokens, and both for each corpus.

    nats: [microbatch, sequence]. Returns a scalar to differentiate, an integer scalar, and [corpora, 2] in fp64.
    """
    per_sequence = torch.stack([(nats * batch.loss_mask).sum(1), batch.loss_mask.sum(1)], dim=1)  # [microbatch, 2]
    report = torch.zeros(corpora, 2, dtype=torch.float64, device=nats.device)
    report.index_add_(0, batch.corpus, per_sequence.detach().double())
    return per_sequence[:, 0].sum(), per_sequence[:, 1].sum().int(), report
