"""Reduced gradients, whole on every data-parallel rank: the distributed optimizer leaves each rank its shard alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch.distributed as dist

from megatron_dsmath.parallel.optimizer import ReducedPiece


def gather_gradients(pieces: Sequence[ReducedPiece]) -> None:
    """After a backward pass, fill in what the other data-parallel ranks hold of each parameter's `main_grad`."""
    for group in (group for piece in pieces for group in piece.bucket_groups):
        if not group.ddp_config.use_distributed_optimizer:
            continue
        ranks = group.intra_distributed_optimizer_instance_group
        for bucket in group.buckets:
            shards = bucket.grad_data.chunk(dist.get_world_size(ranks))
            own = shards[dist.get_rank(ranks)].clone()
            dist.all_gather(list(shards), own, group=ranks)
