"""The topology of a run: this process' ranks, process groups and device, initialized once at the start."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch._C._distributed_c10d import HashStore

from megatron_dsmath.config.sections import ParallelConfig

RENDEZVOUS = "DSMATH_RENDEZVOUS"  # names the file through which the ranks of `--nproc` meet; torchrun needs none


@dataclass(frozen=True)
class Topology:
    """This process' rank in each kind of parallelism. A `size` of 1 means that the kind is off."""

    rank: int
    world_size: int
    tensor_rank: int
    tensor_size: int
    pipeline_rank: int
    pipeline_size: int
    data_rank: int
    data_size: int
    device: torch.device

    @property
    def coordinates(self) -> str:
        """The ranks in each kind of parallelism that is on, as text: `pipeline stage 1 of 2, data 0 of 4`."""
        kinds = (
            ("tensor", self.tensor_rank, self.tensor_size),
            ("pipeline stage", self.pipeline_rank, self.pipeline_size),
            ("data", self.data_rank, self.data_size),
        )
        return ", ".join(f"{kind} {rank} of {size}" for kind, rank, size in kinds if size > 1)

    @property
    def is_first_stage(self) -> bool:
        """Whether this rank holds the embedding and therefore reads tokens."""
        return self.pipeline_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether this rank holds the output layer and therefore computes the loss."""
        return self.pipeline_rank == self.pipeline_size - 1


def initialize_topology(parallel: ParallelConfig, seed: int, timeout_minutes: float = 30.0) -> Topology:
    """Join the other processes, form the groups of `parallel` and seed the random states.

    The processes are those of torchrun or SLURM (`RANK`, `WORLD_SIZE`, ...), those of `--nproc`, or this one alone.
    The layout must divide their number, which `config.load` checks.
    """
    on_gpu = torch.cuda.is_available()
    rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if on_gpu:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    else:
        from megatron_dsmath.parallel import cpu

        cpu.install()
        device = torch.device("cpu")
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if on_gpu else "gloo",
            **_rendezvous(world_size),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(minutes=timeout_minutes),
            device_id=device if on_gpu else None,
        )
    return form_groups(parallel, seed, device)


def form_groups(parallel: ParallelConfig, seed: int, device: torch.device) -> Topology:
    """Form megatron-core's groups over the processes, which have joined already."""
    virtual = parallel.virtual_stages
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        virtual_pipeline_model_parallel_size=virtual if virtual > 1 else None,
        create_gloo_process_groups=device.type == "cuda",
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed)
    return Topology(
        rank=dist.get_rank(),
        world_size=dist.get_world_size(),
        tensor_rank=parallel_state.get_tensor_model_parallel_rank(),
        tensor_size=parallel.tensor,
        pipeline_rank=parallel_state.get_pipeline_model_parallel_rank(),
        pipeline_size=parallel.pipeline,
        data_rank=parallel_state.get_data_parallel_rank(),
        data_size=parallel_state.get_data_parallel_world_size(),
        device=device,
    )


def destroy_topology() -> None:
    """Leave all process groups; the process may initialize another topology."""
    parallel_state.destroy_model_parallel()
    if dist.is_initialized():
        dist.destroy_process_group()


def _rendezvous(world_size: int) -> dict[str, Any]:
    """Arguments by which the processes find each other: the file of `--nproc`, torchrun's address, or one process."""
    if RENDEZVOUS in os.environ:
        return {"init_method": Path(os.environ[RENDEZVOUS]).absolute().as_uri()}
    return {"store": HashStore()} if world_size == 1 else {"init_method": "env://"}
