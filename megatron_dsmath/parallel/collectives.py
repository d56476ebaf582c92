"""What ranks tell each other outside the model: sums, one rank's word, a stop that all agree on."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist

from megatron_dsmath.parallel.topology import Topology


def sum_of_reports(reports: list[torch.Tensor], shape: tuple[int, ...], topology: Topology) -> torch.Tensor:
    """The sum over all microbatches of all ranks, on every rank; [shape] in fp64.

    The last stage's tensor-parallel ranks each hold the same reports, so the first of them speaks for all.
    """
    total = torch.zeros(shape, dtype=torch.float64, device=topology.device)
    if topology.tensor_rank == 0:
        for report in reports:
            total += report
    dist.all_reduce(total)
    return total


def sum_of_words(words: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, on every rank, modulo 2^64: int64 as is `words`."""
    total = words.clone()
    dist.all_reduce(total)
    return total


def any_rank(flag: bool, topology: Topology) -> bool:
    """True on every rank if it is on one."""
    flags = torch.tensor([float(flag)], device=topology.device)
    dist.all_reduce(flags, op=dist.ReduceOp.MAX)
    return bool(flags.item())


def gather(value: Any, topology: Topology) -> list[Any]:
    """Every rank's value, on every rank, in the order of ranks."""
    values: list[Any] = [None] * topology.world_size
    dist.all_gather_object(values, value)
    return values


def from_first_rank(value: Any) -> Any:
    """Rank 0's value, on every rank."""
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def barrier() -> None:
    """Wait for every rank."""
    dist.barrier()
