"""Two sums over each module's output, at each position, that add up over ranks in every layout.

The first sum runs over the batch and the channels with a different weight for each channel, so any change shows in it.
The second is the sum of squares, which does not depend on the order of the channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from megatron_dsmath.parallel import transformer
from megatron_dsmath.parallel.topology import Topology
from megatron_dsmath.verify_layouts.compare import ActivationSums


class ModuleOutput(NamedTuple):
    """A module of the model whose output is summed."""

    module: str
    layer: int | None
    parameter: str  # Hugging Face name of the first parameter that the module applies; for attention, the queries'

    def __str__(self) -> str:
        return f"{self.module} of layer {self.layer}" if self.layer is not None else self.module


# Modules of a layer, with the end of the parameter's name.
MODULES_OF_A_LAYER = (
    ("input norm", "input_layernorm.weight"),
    ("query, key and value", "self_attn.q_proj.weight"),
    ("attention", "self_attn.q_proj.weight"),
    ("attention's output projection", "self_attn.o_proj.weight"),
    ("feed-forward", "mlp.gate_proj.weight"),
)


def module_outputs(layers: int) -> list[ModuleOutput]:
    """All outputs that are summed, in the order of the forward pass."""
    in_layers = [
        ModuleOutput(module, layer, f"model.layers.{layer}.{ending}")
        for layer in range(layers)
        for module, ending in MODULES_OF_A_LAYER
    ]
    return [
        ModuleOutput("embedding", None, "model.embed_tokens.weight"),
        *in_layers,
        ModuleOutput("final norm", None, "model.norm.weight"),
        ModuleOutput("logits", None, "lm_head.weight"),
    ]


@contextmanager
def record_sums(
    model_chunks: Sequence[torch.nn.Module], layers: int, length: int, topology: Topology
) -> Iterator[ActivationSums]:
    """Add the outputs of all forward passes inside the context to the sums: this rank's part of them."""
    sums = np.zeros((len(module_outputs(layers)), 2, length))
    handles = [
        module.register_forward_hook(_summing_hook(sums[index], splits_channels, topology))
        for chunk in model_chunks
        for index, module, splits_channels in _hooked_modules(transformer.unwrap_decoder(chunk), layers)
    ]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _hooked_modules(decoder: transformer.Decoder, layers: int) -> Iterator[tuple[int, torch.nn.Module, bool]]:
    """The modules of a model chunk: index into `module_outputs`, module, and whether it splits channels.

    A module that splits channels outputs other channels of every position on each tensor-parallel rank. Any other
    outputs all channels: of all positions, or under sequence parallelism of this rank's positions.
    """
    if decoder.pre_process:
        yield 0, decoder.embedding, False
    for layer in decoder.decoder.layers:
        attention = layer.self_attention
        modules = (
            (layer.input_layernorm, False),
            (attention.linear_qkv, True),
            (attention.core_attention, True),
            (attention.linear_proj, False),
            (layer.mlp, False),
        )
        first = 1 + len(MODULES_OF_A_LAYER) * (layer.layer_number - 1)
        yield from ((first + index, module, splits) for index, (module, splits) in enumerate(modules))
    if decoder.post_process:
        last = 1 + len(MODULES_OF_A_LAYER) * layers
        yield last, decoder.decoder.final_layernorm, False
        yield last + 1, decoder.output_layer, True


def _summing_hook(sums: ActivationSums, splits_channels: bool, topology: Topology) -> Any:
    def add(_module: torch.nn.Module, _arguments: Any, output: Any) -> None:
        states = (output[0] if isinstance(output, tuple) else output).detach().double()  # [sequence, batch, channels]
        positions, channels = states.size(0), states.size(2)
        has_all_positions = positions == sums.shape[1]
        if has_all_positions and not splits_channels and topology.tensor_rank > 0:
            return  # a copy of the first rank's output
        first_position = 0 if has_all_positions else topology.tensor_rank * positions
        first_channel = topology.tensor_rank * channels if splits_channels else 0
        numbers = torch.arange(first_channel, first_channel + channels, dtype=torch.float64, device=states.device)
        own_positions = slice(first_position, first_position + positions)
        sums[0, own_positions] += (states @ numbers.cos()).sum(1).cpu().numpy()
        sums[1, own_positions] += states.square().sum((1, 2)).cpu().numpy()

    return add
