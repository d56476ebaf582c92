"""The stations of the forward pass by name, and the parameter each one applies."""

from __future__ import annotations

from typing import NamedTuple


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
