"""What passes the stations of the forward pass, as a few sums that add up over ranks whatever the layout.

A station is a module's output. For each position of the sequence two numbers are kept: the sum over the batch and the
channels with a weight for each channel, which sees any change, and the sum of squares, which does not see their order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from megatron_dsmath.parallel import transformer
from megatron_dsmath.parallel.topology import Topology
from megatron_dsmath.verify_layouts.compare import Sums


class Place(NamedTuple):
    """A station of the forward pass."""

    station: str
    layer: int | None
    parameter: str
    """Hugging Face's name of the first parameter that the station applies, or that feeds it where it has none."""

    def __str__(self) -> str:
        return f"{self.station} of layer {self.layer}" if self.layer is not None else self.station


# Station, and the ending of its parameter. Attention itself has none: queries are the first that it takes.
OF_A_LAYER = (
    ("input norm", "input_layernorm.weight"),
    ("query, key and value", "self_attn.q_proj.weight"),
    ("attention", "self_attn.q_proj.weight"),
    ("attention's output projection", "self_attn.o_proj.weight"),
    ("feed-forward", "mlp.gate_proj.weight"),
)


def places(layers: int) -> list[Place]:
    """Every station, in the order of the forward pass."""
    within = [
        Place(station, layer, f"model.layers.{layer}.{ending}")
        for layer in range(layers)
        for station, ending in OF_A_LAYER
    ]
    embedding = Place("embedding", None, "model.embed_tokens.weight")
    return [embedding, *within, Place("final norm", None, "model.norm.weight"), Place("logits", None, "lm_head.weight")]


class _Station(NamedTuple):
    module: torch.nn.Module
    shares_channels: bool
    """Tensor-parallel ranks hold different channels of every position; else all channels, of a part of the positions
    under sequence parallelism."""


@contextmanager
def watched(model_chunks: Sequence[torch.nn.Module], layers: int, length: int, place: Topology) -> Iterator[Sums]:
    """Within, forward passes add to the sums, which are this rank's part of those of all ranks."""
    sums = np.zeros((len(places(layers)), 2, length))
    handles = [
        station.module.register_forward_hook(_adds_to(sums[index], station.shares_channels, place))
        for chunk in model_chunks
        for index, station in _stations(transformer.unwrap_decoder(chunk), layers).items()
    ]
    try:
        yield sums
    finally:
        for handle in handles:
            handle.remove()


def _stations(decoder: transformer.Decoder, layers: int) -> dict[int, _Station]:
    """The stations in a chunk, by their place in the forward pass."""
    found = {}
    if decoder.pre_process:
        found[0] = _Station(decoder.embedding, shares_channels=False)
    for layer in decoder.decoder.layers:
        attention, first = layer.self_attention, 1 + len(OF_A_LAYER) * (layer.layer_number - 1)
        modules = (
            _Station(layer.input_layernorm, shares_channels=False),
            _Station(attention.linear_qkv, shares_channels=True),
            _Station(attention.core_attention, shares_channels=True),
            _Station(attention.linear_proj, shares_channels=False),
            _Station(layer.mlp, shares_channels=False),
        )
        found |= {first + index: station for index, station in enumerate(modules)}
    if decoder.post_process:
        last = 1 + len(OF_A_LAYER) * layers
        found[last] = _Station(decoder.decoder.final_layernorm, shares_channels=False)
        found[last + 1] = _Station(decoder.output_layer, shares_channels=True)
    return found


def _adds_to(sums: Sums, shares_channels: bool, place: Topology) -> Any:
    def add(_module: torch.nn.Module, _arguments: Any, output: Any) -> None:
        states = (output[0] if isinstance(output, tuple) else output).detach().double()  # [sequence, batch, channels]
        share, channels = states.size(0), states.size(2)
        is_whole = share == sums.shape[1]
        if is_whole and not shares_channels and place.tensor_rank > 0:
            return  # a copy of what the first rank says
        first_position = 0 if is_whole else place.tensor_rank * share
        first_channel = place.tensor_rank * channels if shares_channels else 0
        numbers = torch.arange(first_channel, first_channel + channels, dtype=torch.float64, device=states.device)
        positions = slice(first_position, first_position + share)
        sums[0, positions] += (states @ numbers.cos()).sum(1).cpu().numpy()
        sums[1, positions] += states.square().sum((1, 2)).cpu().numpy()

    return add
