from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_dsmath.config.sections import ParallelConfig
from megatron_dsmath.parallel.topology import destroy_topology, initialize_topology
from tests.support.ranks import run_ranks
from tests.support.runs import run_config


def describe_rank(parallel: ParallelConfig) -> dict[str, Any]:
    topology = initialize_topology(parallel, seed=1)
    facts = asdict(topology)
    return facts | {
        "first": topology.is_first_stage,
        "last": topology.is_last_stage,
        "device": topology.device.type,
    }


def describe_ranks(ranks: int, **parallel: Any) -> list[dict[str, Any]]:
    run = run_config(**{f"parallel__{key}": value for key, value in parallel.items()})
    return run_ranks(ranks, describe_rank, run.parallel)


def test_tensor_parallel_ranks_are_adjacent_and_stages_are_far_apart() -> None:
    """Tensor parallelism communicates most and belongs inside a node (Megatron-LM: order tp-cp-ep-dp-pp)."""
    found = describe_ranks(4, tensor=2, pipeline=2)
    assert [(rank["tensor_rank"], rank["pipeline_rank"]) for rank in found] == [
        (0, 0),
        (1, 0),
        (0, 1),
        (1, 1),
    ]
    assert {(rank["tensor_size"], rank["pipeline_size"], rank["data_size"]) for rank in found} == {(2, 2, 1)}
    assert [rank["first"] for rank in found] == [True, True, False, False]
    assert [rank["last"] for rank in found] == [False, False, True, True]


def test_the_remaining_ranks_are_data_parallel() -> None:
    found = describe_ranks(4, tensor=2)
    assert [(rank["tensor_rank"], rank["data_rank"]) for rank in found] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert {rank["data_size"] for rank in found} == {2}
    assert all(rank["first"] and rank["last"] for rank in found)


def start_twice(parallel: ParallelConfig) -> tuple[int, bool]:
    initialize_topology(parallel, seed=1)
    destroy_topology()
    left = not dist.is_initialized()
    return initialize_topology(parallel, seed=1).world_size, left


def test_a_process_can_initialize_a_second_topology() -> None:
    assert run_ranks(1, start_twice, run_config().parallel) == [(1, True)]


class WorldJoined(Exception):
    pass


def start_where_there_is_a_gpu(parallel: ParallelConfig) -> dict[str, Any]:
    """Initialization on a machine with CUDA, simulated without a device."""
    calls: dict[str, Any] = {}

    def join(backend: str, **options: Any) -> None:
        calls.update(backend=backend, device=str(options["device_id"]))
        raise WorldJoined

    current_device = torch.cuda.current_device
    torch.cuda.is_available = lambda: True
    torch.cuda.set_device = lambda device: calls.update(set_device=str(device))
    dist.init_process_group = join
    with pytest.raises(WorldJoined):
        initialize_topology(parallel, seed=1)
    calls["cpu_imported"] = "megatron_dsmath.parallel.cpu" in sys.modules
    calls["unchanged"] = torch.cuda.current_device is current_device
    return calls


def test_with_a_gpu_the_cpu_replacements_are_not_imported() -> None:
    first, second = run_ranks(2, start_where_there_is_a_gpu, run_config().parallel)
    expected = {"backend": "nccl", "cpu_imported": False, "unchanged": True}
    assert first == expected | {"device": "cuda:0", "set_device": "cuda:0"}
    assert second == expected | {"device": "cuda:1", "set_device": "cuda:1"}
