"""Replacements for CUDA calls with which megatron-core 0.16.1 runs on a CPU over gloo.

Imported only where there is no CUDA device.

megatron-core uses CUDA in four ways: device names ("cuda", `current_device()`), `.cuda()` methods, tensor type names
that it compares as strings, and the CUDA random state. Each is replaced with its CPU equivalent, so that schedules,
optimizers and collectives run unchanged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.tensor_parallel import random as megatron_random
from torch.overrides import TorchFunctionMode

_CPU = torch.device("cpu")
_CUDA_TYPE_NAMES = {
    torch.float32: "torch.cuda.FloatTensor",
    torch.float16: "torch.cuda.HalfTensor",
    torch.bfloat16: "torch.cuda.BFloat16Tensor",
}


class CudaOnCpu(TorchFunctionMode):
    """A mode in which every torch call that names a CUDA device runs on the CPU."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if function is torch.Tensor.type and len(args) == 1 and not kwargs:
            return _CUDA_TYPE_NAMES.get(args[0].dtype) or function(*args)
        if function is torch.Tensor.cuda:
            return args[0]
        if function is torch.Tensor.to:
            args = tuple(_CPU if _names_cuda(argument) else argument for argument in args)
        if "device" in kwargs and _names_cuda(kwargs["device"]):
            kwargs["device"] = _CPU
        return function(*args, **kwargs)


def _names_cuda(device: object) -> bool:
    return (isinstance(device, str) and device.startswith("cuda")) or (
        isinstance(device, torch.device) and device.type == "cuda"
    )


class _Stream:
    """Replaces a CUDA stream; a CPU runs operations in order, so there is nothing to wait for."""

    def wait_stream(self, _other: object) -> None:
        return None


_mode: CudaOnCpu | None = None


def install() -> None:
    """Replace the CUDA functions that megatron-core calls, for the rest of this process; repeated calls do nothing."""
    global _mode
    if _mode is not None:
        return
    # One function per name: torch's compiler refuses one function under two names.
    torch.cuda.current_device = lambda: _CPU  # type: ignore[assignment,return-value]
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.set_device = lambda *_: None
    torch.cuda.empty_cache = lambda: None
    torch.cuda.manual_seed = lambda seed: torch.manual_seed(seed)  # type: ignore[assignment]
    torch.cuda.get_rng_state = lambda *_: torch.get_rng_state()
    torch.cuda.set_rng_state = lambda state, *_: torch.set_rng_state(state)
    torch.cuda.current_stream = lambda *_: _Stream()  # type: ignore[assignment]
    torch.cuda.default_stream = lambda *_: _Stream()  # type: ignore[assignment]
    megatron_random._get_cuda_rng_state = lambda *_, **__: torch.get_rng_state()
    megatron_random._set_cuda_rng_state = lambda state, *_, **__: torch.set_rng_state(state)
    _mode = CudaOnCpu()
    _mode.__enter__()
