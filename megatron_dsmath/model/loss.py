"""The loss of a microbatch as a sum of nats and a number of target tokens, in total and by group.

The division comes last: means of means depend on how a batch is split, sums and counts do not (Megatron-LM issues 673,
936, 4590).
"""

from __future__ import annotations

import torch

from megatron_dsmath.parallel.pipeline import DeviceBatch


def sum_by_group(
    nats: torch.Tensor, batch: DeviceBatch, groups: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The sum of nats, the number of target tokens, and both for each of `groups` groups.

    nats: [microbatch, sequence]. Returns a scalar to differentiate, an integer scalar, and [groups, 2] in fp64.
    """
    nats = nats * batch.loss_mask
    per_sequence = torch.stack([nats.sum(1), batch.loss_mask.sum(1)], dim=1)  # [microbatch, 2]
    whole_sequences = batch.groups.size(1) == 1
    parts = per_sequence[:, None] if whole_sequences else torch.stack([nats, batch.loss_mask], dim=2)
    for_each_group = parts[:, :, None].expand(-1, -1, batch.groups.size(2), -1)
    report = torch.zeros(groups, 2, dtype=torch.float64, device=nats.device)
    report.index_add_(0, batch.groups.flatten(), for_each_group.flatten(0, 2).detach().double())
    return per_sequence[:, 0].sum(), per_sequence[:, 1].sum().int(), report
