"""Communication of all ranks outside the model: sums, flags and Python objects."""

from __future__ import annotations

import math
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


def sum_reports_and_norm(
    reports: list[torch.Tensor], shape: tuple[int, ...], norm: float, topology: Topology
) -> tuple[torch.Tensor, float]:
    """`sum_reports` and, in the same collective, the gradient norm that all ranks use.

    It is that of rank 0, or NaN or infinite if the norm of any rank is not finite.
    """
    own_norm = norm if topology.rank == 0 or not math.isfinite(norm) else 0.0
    last = torch.tensor([own_norm], dtype=torch.float64, device=topology.device)
    words = torch.cat([_own_sum(reports, shape, topology).flatten(), last])
    dist.all_reduce(words)
    words = words.cpu()
    return words[:-1].view(shape), float(words[-1])


def all_reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Replace the tensor with its sum over all ranks, on every rank, and return it; integers wrap around."""
    dist.all_reduce(tensor)
    return tensor


def true_on_any_rank(flag: bool, topology: Topology) -> bool:
    """Whether `flag` is true on any rank."""
    flags = torch.tensor([float(flag)], device=topology.device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags.item())


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
    """Wait for every rank."""
    dist.barrier()


def _own_sum(reports: list[torch.Tensor], shape: tuple[int, ...], topology: Topology) -> torch.Tensor:
    total = torch.zeros(shape, dtype=torch.float64, device=topology.device)
    if topology.tensor_rank == 0:
        for report in reports:
            total += report
    return total
