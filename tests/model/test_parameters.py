from __future__ import annotations

from typing import Any

import pytest
import torch

from megatron_dsmath.model.parameters import Parameter, parameters
from tests.support.runs import run_config

SHAPES = [{}, {"model__key_value_heads": 6}, {"model__key_value_heads": 1}]


def numbered(parameter: Parameter) -> list[torch.Tensor]:
    """The Hugging Face tensors of a parameter, with distinct values."""
    start, tensors = 0, []
    for shape in parameter.hf_shapes:
        count = torch.Size(shape).numel()
        tensors.append(torch.arange(start, start + count, dtype=torch.float64).reshape(shape))
        start += count
    return tensors


@pytest.mark.parametrize("shape", SHAPES)
def test_names_and_shapes_are_those_of_transformers(shape: dict[str, int]) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    model = run_config(**shape).model
    config = LlamaConfig(
        vocab_size=model.vocabulary_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.ffn_hidden_size,
        num_hidden_layers=model.layers,
        num_attention_heads=model.attention_heads,
        num_key_value_heads=model.key_value_heads,
        tie_word_embeddings=False,
    )
    with torch.device("meta"):
        theirs = {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(config).named_parameters()}
    ours = {
        name: size
        for parameter in parameters(model)
        for name, size in zip(parameter.hf_names, parameter.hf_shapes, strict=True)
    }
    assert ours == theirs
    assert sum(torch.Size(size).numel() for size in ours.values()) == model.parameters


@pytest.mark.parametrize("shape", SHAPES)
def test_unfuse_inverts_fuse(shape: dict[str, int]) -> None:
    model = run_config(**shape).model
    for parameter in parameters(model):
        tensors = numbered(parameter)
        apart = parameter.unfuse(parameter.fuse(tensors, model.key_value_heads), model.key_value_heads)
        assert all(torch.equal(one, other) for one, other in zip(apart, tensors, strict=True)), parameter.name


def test_fused_attention_has_query_key_and_value_of_each_group_together() -> None:
    """By hand: 4 query heads of 1 channel in 2 groups are q0 q1 k0 v0, q2 q3 k1 v1."""
    parameter = next(parameter for parameter in parameters(run_config().model) if parameter.join == "grouped")
    query, key, value = (torch.tensor(rows).reshape(-1, 1) for rows in ([0, 1, 2, 3], [10, 11], [20, 21]))
    assert parameter.fuse([query, key, value], groups=2).flatten().tolist() == [0, 1, 10, 20, 2, 3, 11, 21]


def test_the_fused_feed_forward_has_gate_above_up() -> None:
    parameter = next(parameter for parameter in parameters(run_config().model) if parameter.join == "stacked")
    assert parameter.fuse([torch.zeros(2, 3), torch.ones(2, 3)], groups=2)[:, 0].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("size", [1, 2])
def test_fused_parts_of_ranks_equal_parts_of_the_fused_tensor(size: int) -> None:
    """Each rank fuses its parts to the matrix of megatron-core: complete groups, and its gate above its up."""
    model = run_config().model
    for parameter in parameters(model):
        tensors = numbered(parameter)
        whole = parameter.fuse(tensors, model.key_value_heads)
        parts: list[Any] = [
            parameter.fuse(
                [tensor[parameter.part(tuple(tensor.shape), rank, size)] for tensor in tensors],
                model.key_value_heads // size,
            )
            for rank in range(size)
        ]
        if parameter.split is None:
            assert all(torch.equal(part, whole) for part in parts)
        elif parameter.join == "stacked":
            gates, ups = zip(*(part.chunk(2) for part in parts), strict=True)
            assert torch.equal(torch.cat([*gates, *ups]), whole)
        else:
            assert torch.equal(torch.cat(parts, dim=parameter.split), whole), parameter.name


def test_only_norms_are_not_split() -> None:
    names = [parameter.name for parameter in parameters(run_config(model__layers=1).model) if parameter.split is None]
    assert names == [
        "decoder.layers.0.input_layernorm.weight",
        "decoder.layers.0.pre_mlp_layernorm.weight",
        "decoder.final_layernorm.weight",
    ]
