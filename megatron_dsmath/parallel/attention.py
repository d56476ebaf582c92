"""Attention with torch's own kernels: flash on a GPU, blocked on a CPU, without an s x s matrix in memory."""

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

FLASH_CHANNELS = range(8, 257, 8)  # channels per head that the flash kernel supports


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
        """Attend from [sequence, batch, heads, channels] to [sequence, batch, heads x channels].

        With `bounds` (of `document_bounds`) attention stays within each document. They are passed as the mask argument,
        which megatron-core hands to every layer and keeps for recomputing it.
        """
        if bounds is not None:
            positions = document_positions(bounds, query.size(0), query.size(1))
            query, key = (rotate(states, self.rope_theta, positions) for states in (query, key))
            return document_attention(query, key, value, bounds).flatten(2)
        query, key = rotate(query, self.rope_theta), rotate(key, self.rope_theta)
        query, key, value = (tensor.permute(1, 2, 0, 3) for tensor in (query, key, value))
        output = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=self.grouped)
        return output.permute(2, 0, 1, 3).flatten(2)


def document_bounds(document_starts: Sequence[npt.NDArray[np.int64]], sequence_length: int) -> npt.NDArray[np.int32]:
    """Cumulative bounds of all documents of a batch, from 0 to the number of tokens: int32 [documents + 1].

    `document_starts`: for each sequence the positions at which documents start, rising from 0. A document that starts
    at `sequence_length` has only a target and no input token, so it is left out.
    """
    starts = [row[row < sequence_length] + index * sequence_length for index, row in enumerate(document_starts)]
    return np.concatenate([*starts, [len(document_starts) * sequence_length]]).astype(np.int32)


def document_positions(bounds: torch.Tensor, sequence: int, batch: int) -> torch.Tensor:
    """The position of each token within its document: [sequence, batch]."""
    tokens = sequence * batch
    # With output_size, torch does not wait for the GPU to learn the size of the result.
    starts = torch.repeat_interleave(bounds[:-1], bounds.diff(), output_size=tokens)
    return (torch.arange(tokens, device=bounds.device) - starts).view(batch, sequence).t()


def document_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor
) -> torch.Tensor:
    """Causal attention within each document; all tensors and the result are [sequence, batch, heads, channels]."""
    sequence, batch, heads, channels = query.shape
    query, key, value = (states.transpose(0, 1).flatten(0, 1) for states in (query, key, value))
    if can_use_flash(query, key):
        output = flash_attention(query, key, value, bounds, longest=sequence)
    else:
        output = loop_attention(query, key, value, bounds)
    return output.view(batch, sequence, heads, channels).transpose(0, 1)


def can_use_flash(query: torch.Tensor, key: torch.Tensor) -> bool:
    """Whether `flash_attention` supports these tensors: bf16 on a GPU, with a torch built with flash attention."""
    if not query.is_cuda or query.dtype != torch.bfloat16 or query.size(2) not in FLASH_CHANNELS:
        return False
    from torch.nn.attention.varlen import varlen_attn

    # Before torch 2.12 the function did not support query heads that share a key.
    return query.size(1) == key.size(1) or "enable_gqa" in signature(varlen_attn).parameters


def flash_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor, longest: int
) -> torch.Tensor:
    """Attention for all documents in one call of torch's variable-length flash kernel: [tokens, heads, channels] each.

    `longest`: an upper bound of the tokens per document.
    """
    from torch.nn.attention.varlen import varlen_attn

    attend = varlen_attn if query.size(1) == key.size(1) else partial(varlen_attn, enable_gqa=True)
    all_earlier_tokens = (-1, 0)
    output = attend(query, key, value, bounds, bounds, longest, longest, window_size=all_earlier_tokens)
    assert isinstance(output, torch.Tensor)  # without the log-sum-exp
    return output


def loop_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bounds: torch.Tensor) -> torch.Tensor:
    """The same as `flash_attention` with one call of torch's scaled_dot_product_attention per document."""
    lengths, grouped = bounds.diff().tolist(), query.size(1) != key.size(1)
    # One split instead of slices: the backward pass of each slice would fill a whole tensor with zeros.
    queries, keys, values = (states.transpose(0, 1)[None].split(lengths, 2) for states in (query, key, value))
    outputs = [
        F.scaled_dot_product_attention(*document, is_causal=True, enable_gqa=grouped)
        for document in zip(queries, keys, values, strict=True)
    ]
    return torch.cat(outputs, 2)[0].transpose(0, 1)
