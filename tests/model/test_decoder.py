from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import yaml

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.model import decoder
from megatron_dsmath.model.parameters import Shape, parameters
from megatron_dsmath.parallel import cpu
from megatron_dsmath.parallel.topology import destroy_topology, form_groups, initialize_topology
from tests.support.ranks import run_ranks
from tests.support.runs import run_config
from tests.support.training import first_weights, joined

PAPER_RUN = Path(__file__).parents[2] / "configs/pretrain/deepseekmath_base_7b.yaml"

LAYOUTS: list[tuple[int, dict[str, Any]]] = [
    (2, {"parallel__tensor": 2, "parallel__sequence": True}),
    (2, {"parallel__pipeline": 2, "parallel__virtual_stages": 2}),
    (2, {"parallel__pipeline": 2, "parallel__stage_layers": [1, 3]}),
    (4, {"parallel__tensor": 2, "parallel__pipeline": 2}),
]


@pytest.fixture(scope="module")
def alone() -> dict[str, torch.Tensor]:
    """The weights of one process by Hugging Face's names."""
    run = run_config()
    return joined(run, run_ranks(1, first_weights, run))


@pytest.mark.parametrize(("ranks", "overrides"), LAYOUTS)
def test_a_seed_gives_the_same_weights_in_every_layout(
    ranks: int, overrides: dict[str, Any], alone: dict[str, torch.Tensor]
) -> None:
    run = run_config(**overrides)
    ours = joined(run, run_ranks(ranks, first_weights, run))
    assert ours.keys() == alone.keys()
    assert [name for name in alone if not torch.equal(ours[name], alone[name])] == []


def test_matrices_have_the_configured_std_and_norms_are_one(alone: dict[str, torch.Tensor]) -> None:
    std = run_config().model.initial_std
    for name, tensor in alone.items():
        if tensor.ndim == 1:
            assert torch.equal(tensor, torch.ones_like(tensor)), name
            continue
        # Five standard errors of the estimate.
        assert tensor.std().item() == pytest.approx(std, rel=5 / math.sqrt(2 * tensor.numel())), name
        assert abs(tensor.mean().item()) < 5 * std / math.sqrt(tensor.numel()), name


def test_matrices_and_seeds_give_different_weights(alone: dict[str, torch.Tensor]) -> None:
    firsts = [tensor.flatten()[0].item() for tensor in alone.values() if tensor.ndim == 2]
    assert len(set(firsts)) == len(firsts) == 4 * 7 + 2
    run = run_config(seed=8)
    others = joined(run, run_ranks(1, first_weights, run))
    assert all(not torch.equal(others[name], tensor) for name, tensor in alone.items() if tensor.ndim == 2)


class Counted(NamedTuple):
    unset: list[str]
    names: list[str]
    asked: list[tuple[str, Shape]]


def load_over_nothing(run: RunConfig) -> Counted:
    """Every parameter is NaN before its weights are loaded."""
    topology = initialize_topology(run.parallel, run.seed)
    model_chunks = decoder.build(run, topology)
    named = dict(decoder.named_parameters(model_chunks))
    for tensor in named.values():
        torch.nn.init.constant_(tensor, torch.nan)
    seed, asked = decoder.WeightsFromSeed(run.model, run.seed), []

    class Listening:
        def read(self, name: str, shape: Shape, part: tuple[slice, ...]) -> torch.Tensor:
            asked.append((name, shape))
            return seed.read(name, shape, part)

    decoder.load_weights(model_chunks, run.model, topology, Listening())
    return Counted([name for name, tensor in named.items() if tensor.isnan().any()], sorted(named), asked)


@pytest.mark.parametrize(("ranks", "overrides"), [(1, {}), *LAYOUTS[1:]])
def test_loading_reaches_every_parameter_and_reads_every_tensor(ranks: int, overrides: dict[str, Any]) -> None:
    run = run_config(**overrides)
    table = parameters(run.model)
    tensor_size = run.parallel.tensor
    found = run_ranks(ranks, load_over_nothing, run)
    assert [rank.unset for rank in found] == [[]] * ranks
    assert sorted(name for rank in found for name in rank.names) == sorted(
        name for parameter in table for name in [parameter.name] * tensor_size
    )
    wanted = [entry for parameter in table for entry in zip(parameter.hf_names, parameter.hf_shapes, strict=True)]
    assert sorted(entry for rank in found for entry in rank.asked) == sorted(wanted * tensor_size)


def paper_run(tensor: int, pipeline: int, stage_layers: list[int] | None) -> RunConfig:
    tree = yaml.safe_load(PAPER_RUN.read_text(encoding="utf-8"))
    tree["model"]["kernels"] = "torch"
    tree["parallel"] |= {
        "tensor": tensor,
        "sequence": tensor > 1,
        "pipeline": pipeline,
        "virtual_stages": 1,
        "stage_layers": stage_layers,
    }
    return RunConfig.model_validate(tree, strict=False)


def shapes_held_by_every_rank(layouts: list[RunConfig]) -> list[list[dict[str, Shape]]]:
    """The parameters of each rank of each layout, built on the meta device by this process."""
    cpu.install()
    held = []
    for run in layouts:
        ranks = []
        for rank in range(run.parallel.model_size):
            dist.init_process_group("fake", store=dist.HashStore(), rank=rank, world_size=run.parallel.model_size)
            topology = form_groups(run.parallel, run.seed, torch.device("cpu"))
            with torch.device("meta"):
                model_chunks = decoder.build(run, topology)
            named = dict(decoder.named_parameters(model_chunks))
            assert {tensor.device.type for tensor in named.values()} == {"meta"}
            ranks.append({name: tuple(tensor.shape) for name, tensor in named.items()})
            destroy_topology()
        held.append(ranks)
    return held


PAPER_LAYOUTS = [(tensor, pipeline, None) for tensor in (1, 2, 4, 8) for pipeline in (1, 2, 3, 5)]
UNEVEN = (1, 4, [7, 8, 8, 7])


@pytest.fixture(scope="module")
def held_in_the_paper_run() -> dict[tuple[int, int], list[dict[str, Shape]]]:
    layouts = [*PAPER_LAYOUTS, UNEVEN]
    (held,) = run_ranks(1, shapes_held_by_every_rank, [paper_run(*layout) for layout in layouts])
    return {layout[:2]: ranks for layout, ranks in zip(layouts, held, strict=True)}


@pytest.mark.parametrize(("tensor", "pipeline"), [layout[:2] for layout in (*PAPER_LAYOUTS, UNEVEN)])
def test_the_paper_model_has_all_parameters_in_each_layout(
    tensor: int, pipeline: int, held_in_the_paper_run: dict[tuple[int, int], list[dict[str, Shape]]]
) -> None:
    ranks = held_in_the_paper_run[tensor, pipeline]
    assert len(ranks) == tensor * pipeline
    stages = [ranks[first : first + tensor] for first in range(0, len(ranks), tensor)]
    assert all(rank == stage[0] for stage in stages for rank in stage)  # equal parts on tensor-parallel ranks

    names = [name for stage in stages for name in stage[0]]
    layers = [int(name.split(".")[2]) for name in names if name.endswith("input_layernorm.weight")]
    assert layers == list(range(30))
    assert len(names) == len(set(names)) == 30 * 6 + 3
    assert stages[0][0]["embedding.word_embeddings.weight"] == (102_400 // tensor, 4096)
    assert stages[-1][0]["output_layer.weight"] == (102_400 // tensor, 4096)

    counts = [
        math.prod(shape)
        for stage in stages
        for tensor_rank, rank in enumerate(stage)
        for name, shape in rank.items()
        if tensor_rank == 0 or "norm" not in name  # norms are replicated, matrices are split
    ]
    assert sum(counts) == 6_910_365_696  # by hand from DeepSeek LLM, Table 2


def test_stages_have_the_configured_layers(
    held_in_the_paper_run: dict[tuple[int, int], list[dict[str, Shape]]],
) -> None:
    stages = held_in_the_paper_run[UNEVEN[:2]]
    assert [sum(name.endswith("linear_qkv.weight") for name in stage) for stage in stages] == [7, 8, 8, 7]
