"""A model larger than memory, run once: each module holds its weights only while it computes."""

from __future__ import annotations

from collections.abc import Callable

import torch

from megatron_dsmath.model.parameters import Shape

_BLOCK_VALUES = 1 << 24


def stream_weights(model: torch.nn.Module, read: Callable[[str], torch.Tensor]) -> None:
    """Have each module of `model`, built on the meta device, filled before it computes and emptied afterwards.

    `read` gives a parameter by its name in `model`. In memory are the parameters of one module at a time.
    """
    for path, module in model.named_modules():
        for key, _ in list(module.named_parameters(recurse=False)):
            _hold_while_computing(module, key, f"{path}.{key}", read)


def rows_in_fp32(shape: Shape, read: Callable[[slice], torch.Tensor]) -> torch.Tensor:
    """A tensor of `shape` in fp32, put together from the rows that `read` gives: never a second copy of the whole."""
    whole = torch.empty(shape)
    rows = max(1, _BLOCK_VALUES * shape[0] // whole.numel())
    for first in range(0, shape[0], rows):
        block = slice(first, min(first + rows, shape[0]))
        whole[block] = read(block)
    return whole


def _hold_while_computing(module: torch.nn.Module, key: str, name: str, read: Callable[[str], torch.Tensor]) -> None:
    empty = getattr(module, key)

    def fill(*_: object) -> None:
        setattr(module, key, torch.nn.Parameter(read(name), requires_grad=False))

    def drop(*_: object) -> None:
        setattr(module, key, empty)

    module.register_forward_pre_hook(fill)
    module.register_forward_hook(drop)
