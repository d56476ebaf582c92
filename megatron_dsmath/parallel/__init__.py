"""MEGATRON-CORE AT ARM'S LENGTH: the only room that imports it.

Batch first at every door; megatron-core's [sequence, batch, hidden] stays inside.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def _quick_and_quiet() -> Iterator[None]:
    """Without a GPU nothing of megatron-core's is compiled, so its decorators need not load torch's compiler.

    That is two of five CPU seconds. Its warnings name optional packages, which `dsmath doctor` reports.
    """
    compile_of_torch = torch.compile
    if not torch.cuda.is_available():
        torch.compile = lambda model=None, **_: model if model is not None else (lambda function: function)  # type: ignore[assignment]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.compile = compile_of_torch


# What megatron-core 0.16.1 does that newer torch and its own authors frown upon is nothing a user could change.
_SPEAKERS = r"torch\.distributed|megatron\.core|megatron_dsmath\.parallel\.cpu"  # the last passes torch's calls on
for _category in (FutureWarning, UserWarning):
    warnings.filterwarnings("ignore", category=_category, module=_SPEAKERS)
with _quick_and_quiet():
    import megatron.core.dist_checkpointing
    import megatron.core.models.gpt.gpt_layer_specs
    import megatron.core.optimizer
    import megatron.core.pipeline_parallel  # noqa: F401
