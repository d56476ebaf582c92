"""The table of the decoder's parameters: megatron-core's names, Hugging Face's names, and the split over ranks.

Import, export, initial weights from a seed, counts and checks all use this table. On disk, weights have the form of
Hugging Face's unfused tensors. megatron-core fuses three of them into one matrix for attention (the query, key and
value rows of each group together) and two for the feed-forward (gate above up).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from megatron_dsmath.config.sections import ModelConfig

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]
Join = Literal["alone", "grouped", "stacked"]

# TransformerEngine stores a norm's weight in the linear layer that follows it: suffix here to suffix there.
TRANSFORMER_ENGINE_NAMES = {
    "input_layernorm.weight": "self_attention.linear_qkv.layer_norm_weight",
    "pre_mlp_layernorm.weight": "mlp.linear_fc1.layer_norm_weight",
}


@dataclass(frozen=True)
class Parameter:
    """One parameter of the decoder and the Hugging Face tensors it consists of."""

    name: str  # in the whole model, as megatron-core gives it
    hf_names: tuple[str, ...]
    hf_shapes: tuple[Shape, ...]  # whole shapes of `hf_names`
    split: int | None  # the dimension that is split over tensor-parallel ranks; None for norms, which are copied
    join: Join = "alone"

    @property
    def is_vocabulary(self) -> bool:
        """Whether there is one row per token of the vocabulary, to which Megatron-LM adds padding."""
        return self.name in ("embedding.word_embeddings.weight", "output_layer.weight")

    def part(self, shape: Shape, rank: int, size: int) -> tuple[slice, ...]:
        """The part of a Hugging Face tensor of `shape` that tensor-parallel rank `rank` of `size` holds."""
        part = [slice(None) for _ in shape]
        if self.split is not None:
            share = shape[self.split] // size
            part[self.split] = slice(rank * share, (rank + 1) * share)
        return tuple(part)

    def fuse(self, tensors: Sequence[torch.Tensor], groups: int) -> torch.Tensor:
        """Fuse the Hugging Face tensors, whole or one rank's parts; `groups`: the key-value heads they contain."""
        import torch

        if self.join == "alone":
            return tensors[0]
        if self.join == "stacked":
            return torch.cat(list(tensors))
        columns = tensors[0].size(1)
        return torch.cat([tensor.reshape(groups, -1, columns) for tensor in tensors], dim=1).reshape(-1, columns)

    def unfuse(self, tensor: torch.Tensor, groups: int) -> tuple[torch.Tensor, ...]:
        """Split a fused tensor into Hugging Face's tensors: the inverse of `fuse`."""
        if self.join == "alone":
            return (tensor,)
        if self.join == "stacked":
            return tuple(tensor.chunk(2))
        rows = [shape[0] for shape in self.hf_shapes]
        total, columns = sum(rows), tensor.size(1)
        share = tensor.size(0) // groups
        sizes = [share * row // total for row in rows]
        shares = tensor.reshape(groups, share, columns).split_with_sizes(sizes, dim=1)
        return tuple(share.reshape(-1, columns) for share in shares)


def parameters(model: ModelConfig) -> list[Parameter]:
    """Every parameter of the decoder, in the order of the forward pass."""
    hidden, vocabulary = model.hidden_size, model.vocabulary_size
    embedding = Parameter(
        "embedding.word_embeddings.weight", ("model.embed_tokens.weight",), ((vocabulary, hidden),), split=0
    )
    final_norm = Parameter("decoder.final_layernorm.weight", ("model.norm.weight",), ((hidden,),), split=None)
    output = Parameter("output_layer.weight", ("lm_head.weight",), ((vocabulary, hidden),), split=0)
    layers = [parameter for layer in range(model.layers) for parameter in _layer(model, layer)]
    return [embedding, *layers, final_norm, output]


def _layer(model: ModelConfig, layer: int) -> list[Parameter]:
    hidden, inner = model.hidden_size, model.ffn_hidden_size
    queries, keys = model.attention_heads * model.head_size, model.key_value_heads * model.head_size
    prefix, hf_prefix = f"decoder.layers.{layer}", f"model.layers.{layer}"
    attention, feed_forward = f"{hf_prefix}.self_attn", f"{hf_prefix}.mlp"
    return [
        Parameter(
            f"{prefix}.input_layernorm.weight", (f"{hf_prefix}.input_layernorm.weight",), ((hidden,),), split=None
        ),
        Parameter(
            f"{prefix}.self_attention.linear_qkv.weight",
            tuple(f"{attention}.{letter}_proj.weight" for letter in "qkv"),
            ((queries, hidden), (keys, hidden), (keys, hidden)),
            split=0,
            join="grouped",
        ),
        Parameter(
            f"{prefix}.self_attention.linear_proj.weight",
            (f"{attention}.o_proj.weight",),
            ((hidden, queries),),
            split=1,
        ),
        Parameter(
            f"{prefix}.pre_mlp_layernorm.weight",
            (f"{hf_prefix}.post_attention_layernorm.weight",),
            ((hidden,),),
            split=None,
        ),
        Parameter(
            f"{prefix}.mlp.linear_fc1.weight",
            (f"{feed_forward}.gate_proj.weight", f"{feed_forward}.up_proj.weight"),
            ((inner, hidden), (inner, hidden)),
            split=0,
            join="stacked",
        ),
        Parameter(
            f"{prefix}.mlp.linear_fc2.weight", (f"{feed_forward}.down_proj.weight",), ((hidden, inner),), split=1
        ),
    ]
