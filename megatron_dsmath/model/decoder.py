"""This rank's model chunks of the decoder, their parameters by name, and where their weights come from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from megatron_dsmath.config.sections import ModelConfig, RunConfig
from megatron_dsmath.model.parameters import TRANSFORMER_ENGINE_NAMES, Parameter, Shape, parameters
from megatron_dsmath.parallel import transformer
from megatron_dsmath.parallel.collectives import all_reduce_sum
from megatron_dsmath.parallel.topology import Topology

_NAMES_BY_TRANSFORMER_ENGINE = {stored: name for name, stored in TRANSFORMER_ENGINE_NAMES.items()}


class WeightSource(Protocol):
    """Where weights come from: a Hugging Face folder, a checkpoint, or a seed. Names are Hugging Face's."""

    def read(self, name: str, shape: Shape, part: tuple[slice, ...]) -> torch.Tensor:
        """One rank's part of the tensor `name`, whose whole shape must be `shape`."""


class WeightsFromSeed:
    """Weights drawn anew: the same in every layout, since each whole tensor has a generator of its own."""

    def __init__(self, model: ModelConfig, seed: int) -> None:
        self.std, self.seed = model.initial_std, seed

    def read(self, name: str, shape: Shape, part: tuple[slice, ...]) -> torch.Tensor:
        """Normal with the model's initial standard deviation (DeepSeek LLM, section 2.3); norms are 1."""
        if len(shape) == 1:
            return torch.ones(shape)
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.empty(shape).normal_(0.0, self.std, generator=generator)[part]


def build(run: RunConfig, topology: Topology) -> list[transformer.Decoder]:
    """This rank's model chunks of the decoder, one for each virtual stage, their weights not yet set."""
    model_chunks = transformer.build(run, topology.device)
    table = {parameter.name: parameter for parameter in parameters(run.model)}
    for name, tensor in named_parameters(model_chunks):
        split = table[name].split
        if split is not None:
            # megatron-core counts a tensor without these once over the tensor-parallel ranks, as it should a norm.
            transformer.mark_tensor_parallel(tensor, split)
    return model_chunks


def named_parameters(model_chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Each parameter this rank holds with the name it has in the whole model (`Parameter.name`)."""
    for chunk in model_chunks:
        decoder = transformer.unwrap_decoder(chunk)
        numbers = [layer.layer_number - 1 for layer in decoder.decoder.layers]
        for name, tensor in decoder.named_parameters():
            if name.startswith("decoder.layers."):
                local, rest = name.removeprefix("decoder.layers.").split(".", 1)
                rest = _NAMES_BY_TRANSFORMER_ENGINE.get(rest, rest)
                name = f"decoder.layers.{numbers[int(local)]}.{rest}"
            yield name, tensor


@torch.no_grad()
def load_weights(
    model_chunks: Sequence[torch.nn.Module], model: ModelConfig, topology: Topology, source: WeightSource
) -> None:
    """Fill this rank's parameters from `source`, one tensor at a time."""
    table = {parameter.name: parameter for parameter in parameters(model)}
    groups = model.key_value_heads // topology.tensor_size
    for name, tensor in named_parameters(model_chunks):
        tensor.copy_(_this_rank(table[name], topology, source, groups))


@torch.no_grad()
def gather_weights(
    model_chunks: Sequence[torch.nn.Module], model: ModelConfig, topology: Topology
) -> dict[str, torch.Tensor]:
    """A copy of every weight by its Hugging Face name, whole on every rank; all ranks must call this together."""
    held, groups = dict(named_parameters(model_chunks)), model.key_value_heads // topology.tensor_size
    dtype = next(iter(held.values())).dtype
    whole = {}
    for parameter in parameters(model):
        is_copy = topology.data_rank > 0 or (parameter.split is None and topology.tensor_rank > 0)
        parts = () if is_copy or parameter.name not in held else parameter.unfuse(held[parameter.name], groups)
        for place, (name, shape) in enumerate(zip(parameter.hf_names, parameter.hf_shapes, strict=True)):
            whole[name] = torch.zeros(shape, dtype=dtype, device=topology.device)
            if parts:
                whole[name][parameter.part(shape, topology.tensor_rank, topology.tensor_size)] = parts[place]
            all_reduce_sum(whole[name])  # exact: one rank has the value, and all others nothing
    return whole


def _this_rank(parameter: Parameter, topology: Topology, source: WeightSource, groups: int) -> torch.Tensor:
    parts = [
        source.read(name, shape, parameter.part(shape, topology.tensor_rank, topology.tensor_size))
        for name, shape in zip(parameter.hf_names, parameter.hf_shapes, strict=True)
    ]
    return parameter.fuse(parts, groups)
