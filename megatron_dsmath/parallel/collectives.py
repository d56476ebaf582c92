"""Communication of all ranks outside the model: sums, flags and Python objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from megatron_dsmath.parallel.topology import Topology


def sum_reports(reports: list[torch.Tensor], shape: tuple[int, ...], topology: Topology) -> torch.Tensor:
    """The sum over all microbatches of all ranks, on every rank; [shape] in fp64.

    Tensor-parallel ranks of the last stage have equal reports, so only the first of them adds its reports.
    """
    total = _own_sum(reports, shape, topology)
    dist.all_reduce(total)
    return total


def sum_step(
    reports: list[torch.Tensor], shape: tuple[int, ...], norm: float, words: torch.Tensor, topology: Topology
) -> tuple[torch.Tensor, float, list[int]]:
    """`sum_reports`, the gradient norm, and the sum of each of the int64 `words` modulo 2^64, by one collective.

    The norm is rank 0's. Where the norm of any rank is not finite, the result is not finite either. The halves of a
    word are summed as fp64, which is exact for up to 2^21 ranks.
    """
    own_norm = norm if topology.rank == 0 or not math.isfinite(norm) else 0.0
    own_norms = torch.tensor([own_norm], dtype=torch.float64, device=topology.device)
    high, low = words >> 32 & 0xFFFFFFFF, words & 0xFFFFFFFF
    total = torch.cat([_own_sum(reports, shape, topology).flatten(), own_norms, high.double(), low.double()])
    dist.all_reduce(total)
    sums, norms, *halves = total.cpu().split([math.prod(shape), 1, len(words), len(words)])
    highs, lows = (map(int, half.tolist()) for half in halves)
    word_sums = [((high << 32) + low) % 2**64 for high, low in zip(highs, lows, strict=True)]
    return sums.view(shape), float(norms), word_sums


def all_reduce_sum(tensor: torch.Tensor) -> None:
    """Replace the tensor with its sum over all ranks, on every rank."""
    dist.all_reduce(tensor)


def true_on_any_rank(flags: Sequence[bool], topology: Topology) -> list[bool]:
    """For each flag, whether it is True on any rank; one collective for all of them."""
    agreed = torch.tensor(flags, dtype=torch.uint8, device=topology.device)
    dist.all_reduce(agreed, op=dist.ReduceOp.MAX)
    return list(map(bool, agreed.tolist()))


def gather_objects(value: Any, topology: Topology) -> list[Any]:
    """The values of all ranks, in order, on every rank."""
    values: list[Any] = [None] * topology.world_size
    dist.all_gather_object(values, value)
    return values


def broadcast_object(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Wait for all ranks."""
    dist.barrier()


def _own_sum(reports: list[torch.Tensor], shape: tuple[int, ...], topology: Topology) -> torch.Tensor:
    total = torch.zeros(shape, dtype=torch.float64, device=topology.device)
    if topology.tensor_rank == 0:
        for report in reports:
            total += report
    return total
