"""RMSNorm that may run under sequence parallelism without apex and TransformerEngine."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from megatron.core.transformer.transformer_config import TransformerConfig


class RMSNorm(torch.nn.Module):
    """Root-mean-square norm with a learned scale (LLaMA; megatron-core's own refuses sequence parallelism)."""

    def __init__(self, config: TransformerConfig, hidden_size: int, eps: float) -> None:
        super().__init__()
        self.shape, self.epsilon = (hidden_size,), eps
        device = None if config.use_cpu_initialization else torch.cuda.current_device()
        self.weight = torch.nn.Parameter(torch.ones(hidden_size, dtype=config.params_dtype, device=device))
        # Each rank sees a part of the sequence, so megatron-core must sum this weight's gradient over them.
        self.weight.sequence_parallel = config.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Scale each position of [sequence, batch, hidden] to a mean square of 1."""
        return F.rms_norm(hidden, self.shape, self.weight, self.epsilon)
