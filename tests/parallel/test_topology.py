from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

import pytest
import torch
import torch.distributed as dist

from megatron_dsmath.config.sections import ParallelConfig
from megatron_dsmath.parallel import topology
from tests.support.ranks import run_ranks
from tests.support.runs import run_config


def place_of(parallel: ParallelConfig) -> dict[str, Any]:
    place = topology.start(parallel, seed=1)
    return asdict(place) | {"first": place.is_first_stage, "last": place.is_last_stage, "device": place.device.type}


def places(ranks: int, **parallel: Any) -> list[dict[str, Any]]:
    run = run_config(**{f"parallel__{key}": value for key, value in parallel.items()})
    return run_ranks(ranks, place_of, run.parallel)


def test_tensor_ranks_are_neighbours_and_stages_are_far_apart() -> None:
    """Tensor parallelism talks most and belongs inside a node (Megatron-LM: order tp-cp-ep-dp-pp)."""
    found = places(4, tensor=2, pipeline=2)
    assert [(place["tensor_rank"], place["pipeline_rank"]) for place in found] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert {(place["tensor_size"], place["pipeline_size"], place["data_size"]) for place in found} == {(2, 2, 1)}
    assert [place["first"] for place in found] == [True, True, False, False]
    assert [place["last"] for place in found] == [False, False, True, True]


def test_what_remains_of_the_world_is_data_parallel() -> None:
    found = places(4, tensor=2)
    assert [(place["tensor_rank"], place["data_rank"]) for place in found] == [(0, 0), (1, 0), (0, 1), (1, 1)]
    assert {place["data_size"] for place in found} == {2}
    assert all(place["first"] and place["last"] for place in found)


def start_twice(parallel: ParallelConfig) -> tuple[int, bool]:
    topology.start(parallel, seed=1)
    topology.stop()
    left = not dist.is_initialized()
    return topology.start(parallel, seed=1).world_size, left


def test_a_process_that_left_a_world_may_start_another() -> None:
    assert run_ranks(1, start_twice, run_config().parallel) == [(1, True)]


class WorldJoined(Exception):
    pass


def start_where_there_is_a_gpu(parallel: ParallelConfig) -> dict[str, Any]:
    """The start on a machine with CUDA, as far as it goes without a device."""
    told: dict[str, Any] = {}

    def join(backend: str, **options: Any) -> None:
        told.update(backend=backend, device=str(options["device_id"]))
        raise WorldJoined

    current_device = torch.cuda.current_device
    torch.cuda.is_available = lambda: True
    torch.cuda.set_device = lambda device: told.update(set_device=str(device))
    dist.init_process_group = join
    with pytest.raises(WorldJoined):
        topology.start(parallel, seed=1)
    told["adaptor"] = "megatron_dsmath.parallel.cpu" in sys.modules
    told["untouched"] = torch.cuda.current_device is current_device
    return told


def test_a_gpu_is_used_where_there_is_one_and_the_cpu_adaptor_not_even_imported() -> None:
    first, second = run_ranks(2, start_where_there_is_a_gpu, run_config().parallel)
    expected = {"backend": "nccl", "adaptor": False, "untouched": True}
    assert first == expected | {"device": "cuda:0", "set_device": "cuda:0"}
    assert second == expected | {"device": "cuda:1", "set_device": "cuda:1"}
