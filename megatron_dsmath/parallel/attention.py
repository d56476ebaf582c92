"""Attention on torch's own kernels: flash on a GPU, blocked on a CPU, never an s x s matrix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_dsmath.parallel.documents import attention_within, positions_within
from megatron_dsmath.parallel.rotary import rotate


class CoreAttention(torch.nn.Module):
    """The part of self-attention between the projections: rotary positions, then causal attention."""

    def __init__(self, config: TransformerConfig, rope_theta: float, **_unused: Any) -> None:
        super().__init__()
        self.rope_theta = rope_theta
        self.grouped = config.num_query_groups != config.num_attention_heads

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        bounds: torch.Tensor | None = None,
        /,
        **_unused: Any,
    ) -> torch.Tensor:
        """[sequence, batch, heads, channels] each to [sequence, batch, heads x channels].

        Over the whole sequence, or within documents: their `bounds` (`documents`) come in the place of a mask, which
        megatron-core hands to every layer and keeps for recomputing it.
        """
        if bounds is not None:
            positions = positions_within(bounds, query.size(0), query.size(1))
            query, key = (rotate(states, self.rope_theta, positions) for states in (query, key))
            return attention_within(query, key, value, bounds).flatten(2)
        query, key = rotate(query, self.rope_theta), rotate(key, self.rope_theta)
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=self.grouped)
        return output.permute(2, 0, 1, 3).flatten(2)
