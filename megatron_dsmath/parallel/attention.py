"""Attention on torch's own kernels: flash on a GPU, blocked on a CPU, never an s x s matrix."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_dsmath.parallel.rotary import rotate

KERNEL_CHANNELS = range(8, 257, 8)


def document_bounds(document_starts: Sequence[npt.NDArray[np.int64]], sequence_length: int) -> npt.NDArray[np.int32]:
    """The bounds of rows in which documents start at these positions, for each row rising from 0.

    A document that starts at `sequence_length` has its first token as the row's last target and no input: left out.
    """
    starts = [row[row < sequence_length] + number * sequence_length for number, row in enumerate(document_starts)]
    return np.concatenate([*starts, [len(document_starts) * sequence_length]]).astype(np.int32)


def positions_within(bounds: torch.Tensor, sequence: int, batch: int) -> torch.Tensor:
    """How far each token is from the start of its document: [sequence, batch]."""
    tokens = sequence * batch
    # The size is given, for a GPU would have to be waited for to tell it.
    starts = torch.repeat_interleave(bounds[:-1], bounds.diff(), output_size=tokens)
    return (torch.arange(tokens, device=bounds.device) - starts).view(batch, sequence).t()


def attention_within(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """Causal attention inside each document: [sequence, batch, heads, channels] each to the same."""
    sequence, batch, heads, channels = query.shape
    query, key, value = (states.transpose(0, 1).flatten(0, 1) for states in (query, key, value))
    if kernel_takes(query, key):
        output = by_kernel(query, key, value, bounds, longest=sequence)
    else:
        output = document_by_document(query, key, value, bounds)
    return output.view(batch, sequence, heads, channels).transpose(0, 1)


def kernel_takes(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether `by_kernel` computes this: bf16 on a GPU, where torch is built with flash attention."""
    if not query.is_cuda or query.dtype != torch.bfloat16 or query.size(2) not in KERNEL_CHANNELS:
        return False
    from torch.nn.attention.varlen import varlen_attn

    # Before torch 2.12 it could not be told that query heads share a key.
    return query.size(1) == key.size(1) or "enable_gqa" in signature(varlen_attn).parameters


def by_kernel(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int
) -> torch.Tensor:
    """All documents in one call of torch's flash kernel for varying lengths: [tokens, heads, channels] each.

    `longest`: tokens that no document is longer than.
    """
    from torch.nn.attention.varlen import varlen_attn

    attend = varlen_attn if query.size(1) == key.size(1) else partial(varlen_attn, enable_gqa=True)
    every_earlier_token = (-1, 0)
    output = attend(query, key, value, bounds, bounds, longest, longest, window_size=every_earlier_token)
    assert isinstance(output, torch.Tensor)  # and no log-sum-exp with it
    return output


def document_by_document(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor
) -> torch.Tensor:
    """The same on torch's scaled_dot_product_attention, a call a document."""
    lengths, grouped = bounds.diff().tolist(), query.size(1) != key.size(1)
    # Split at once, for the backward pass of a slice fills a whole tensor with zeros.
    queries, keys, values = (states.transpose(0, 1)[None].split(lengths, 2) for states in (query, key, value))
    outputs = [
        F.scaled_dot_product_attention(*document, is_causal=True, enable_gqa=grouped)
        for document in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(outputs, 2)[0].transpose(0, 1)


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
