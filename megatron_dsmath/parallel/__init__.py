"""Process groups, layers, schedules, optimizer and sharded state: the only room that imports megatron-core.

Public functions take tensors batch first; megatron-core's [sequence, batch, hidden] is internal.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def _faster_imports() -> Iterator[None]:
    """Import without warnings and, where there is no GPU, without torch's compiler.

    megatron-core's decorators call `torch.compile`, and loading the compiler takes two of five CPU seconds. The
    warnings name optional packages, which `dsmath doctor` reports.
    """
    original_compile = torch.compile
    if not torch.cuda.is_available():
        torch.compile = lambda model=None, **_: model if model is not None else (lambda function: function)  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.compile = original_compile


# megatron-core 0.16.1 uses deprecated functions of torch and of itself; users cannot change that.
_WARNING_MODULES = r"torch\.distributed|megatron\.core|megatron_dsmath\.parallel\.cpu"  # `cpu` forwards torch's calls
for _category in (FutureWarning, UserWarning):
    warnings.filterwarnings("ignore", category=_category, module=_WARNING_MODULES)
with _faster_imports():
    import megatron.core.dist_checkpointing
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.optimizer
    import megatron.core.pipeline_parallel  # noqa: F401
