"""Rotary position embedding in LLaMA's convention: channel i is rotated with channel i + channels / 2."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch


@lru_cache(maxsize=8)
def rotary_table(
    length: int, channels: int, theta: float, device: torch.device, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of positions 0 to `length` - 1, each [length, 1, 1, channels / 2], computed in fp32."""
    frequencies = theta ** (-torch.arange(0, channels, 2, dtype=torch.float32, device=device) / channels)
    angles = torch.outer(torch.arange(length, dtype=torch.float32, device=device), frequencies)[:, None, None]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(states: torch.Tensor, theta: float, positions: torch.Tensor | None = None) -> torch.Tensor:
    """Rotate [sequence, batch, heads, channels] by the angles of `positions` [sequence, batch]; None: from 0."""
    cosines, sines = rotary_table(states.size(0), states.size(3), theta, states.device, states.dtype)
    if positions is not None:
        cosines, sines = cosines[:, 0][positions], sines[:, 0][positions]
    rotated: torch.Tensor = _Rotation.apply(states, cosines, sines)
    return rotated


class _Rotation(torch.autograd.Function):
    """Rotation in four passes over half the channels, where the usual form takes five over all channels."""

    @staticmethod
    def forward(ctx: Any, states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(cosines, sines)
        return _rotate(states, cosines, sines, 1)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        cosines, sines = ctx.saved_tensors
        return _rotate(gradient, cosines, sines, -1), None, None


def _rotate(states: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor, direction: int) -> torch.Tensor:
    first, second = states.chunk(2, dim=-1)
    rotated = torch.empty_like(states)
    left, right = rotated.chunk(2, dim=-1)
    torch.mul(first, cosines, out=left).addcmul_(second, sines, value=-direction)
    torch.mul(second, cosines, out=right).addcmul_(first, sines, value=direction)
    return rotated
