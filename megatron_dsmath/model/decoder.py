"""Build this rank's model chunks of the decoder, name their parameters, and load or gather their weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Protocol

import torch

from megatron_dsmath.config.sections import ModelConfig, RunConfig
from megatron_dsmath.model.parameters import TRANSFORMER_ENGINE_NAMES, Shape, parameters
from megatron_dsmath.parallel import transformer
from megatron_dsmath.parallel.collectives import all_reduce_sum
from megatron_dsmath.parallel.topology import Topology

_NAMES_BY_TRANSFORMER_ENGINE = {stored: name for name, stored in TRANSFORMER_ENGINE_NAMES.items()}


class WeightSource(Protocol):
    """A source of weights by Hugging Face's names: a Hugging Face folder, a checkpoint, or a seed."""

    def read(self, name: str, shape: Shape, part: tuple[slice, ...]) -> torch.Tensor:
        """Read one rank's part of the tensor `name`, whose whole shape must be `shape`."""


class WeightsFromSeed:
    """Random weights, equal in every layout because each whole tensor has its own generator."""

    def __init__(self, model: ModelConfig, seed: int) -> None:
        self.std, self.seed = model.initial_std, seed

    def read(self, name: str, shape: Shape, part: tuple[slice, ...]) -> torch.Tensor:
        """Draw from a normal distribution with the deviation `initial_std` (DeepSeek LLM, section 2.3); norms are 1."""
        if len(shape) == 1:
            return torch.ones(shape)
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        return torch.empty(shape).normal_(0.0, self.std, generator=generator)[part]


def build(run: RunConfig, topology: Topology) -> list[transformer.Decoder]:
    """Build this rank's model chunks, one per virtual stage; their weights are not initialized."""
    model_chunks = transformer.build(run, topology.device)
    table = {parameter.name: parameter for parameter in parameters(run.model)}
    for name, tensor in named_parameters(model_chunks):
        split = table[name].split
        if split is not None:
            # In the gradient norm, megatron-core counts unmarked tensors once over the tensor-parallel ranks, as norms.
            transformer.mark_tensor_parallel(tensor, split)
    return model_chunks


def named_parameters(model_chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """Each parameter of this rank with its name in the whole model (`Parameter.name`)."""
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
    """Load this rank's parameters from `source`, one tensor at a time."""
    table = {parameter.name: parameter for parameter in parameters(model)}
    groups = model.key_value_heads // topology.tensor_size
    for name, tensor in named_parameters(model_chunks):
        parameter = table[name]
        parts = [
            source.read(hf_name, shape, parameter.part(shape, topology.tensor_rank, topology.tensor_size))
            for hf_name, shape in zip(parameter.hf_names, parameter.hf_shapes, strict=True)
        ]
        tensor.copy_(parameter.fuse(parts, groups))


@torch.no_grad()
def gather_weights(
    model_chunks: Sequence[torch.nn.Module], model: ModelConfig, topology: Topology
) -> dict[str, torch.Tensor]:
    """Copies of all whole weights by Hugging Face name, on every rank; all ranks must call this together."""
    held, groups = dict(named_parameters(model_chunks)), model.key_value_heads // topology.tensor_size
    dtype = next(iter(held.values())).dtype
    whole = {}
    for parameter in parameters(model):
        is_copy = topology.data_rank > 0 or (parameter.split is None and topology.tensor_rank > 0)
        parts = () if is_copy or parameter.name not in held else parameter.unfuse(held[parameter.name], groups)
        for index, (name, shape) in enumerate(zip(parameter.hf_names, parameter.hf_shapes, strict=True)):
            whole[name] = torch.zeros(shape, dtype=dtype, device=topology.device)
            if parts:
                whole[name][parameter.part(shape, topology.tensor_rank, topology.tensor_size)] = parts[index]
            all_reduce_sum(whole[name])  # exact: one rank adds the value, all others add zero
    return whole
