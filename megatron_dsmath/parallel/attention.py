"""Attention on torch's scaled_dot_product_attention: flash on a GPU, blocked on a CPU, never an s x s matrix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_dsmath.parallel.rotary import rotate


class CoreAttention(torch.nn.Module):
    """The part of self-attention between the projections: rotary positions, then causal over the whole sample."""

    def __init__(self, config: TransformerConfig, rope_theta: float, **_unused: Any) -> None:
        super().__init__()
        self.rope_theta = rope_theta
        self.grouped = config.num_query_groups != config.num_attention_heads

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: None = None,
        /,
        **_unused: Any,
    ) -> torch.Tensor:
        """[sequence, batch, heads, channels] each to [sequence, batch, heads x channels]."""
        query, key = rotate(query, self.rope_theta), rotate(key, self.rope_theta)
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=self.grouped)
        return output.permute(2, 0, 1, 3).flatten(2)
