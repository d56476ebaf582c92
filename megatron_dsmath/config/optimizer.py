"""AdamW and gradient clipping (paper, section 2.2.1)."""

from __future__ import annotations

from pydantic import Field

from megatron_dsmath.config.section import Section


class OptimizerConfig(Section):
    """AdamW's numbers and the clip; weight decay holds for every matrix and for no norm."""

    beta1: float = Field(ge=0, lt=1)
    """Decay of the first moment (paper: 0.9)."""
    beta2: float = Field(ge=0, lt=1)
    """Decay of the second moment (paper: 0.95)."""
    epsilon: float = Field(gt=0)
    """Added to the root of the second moment (not published; 1e-8)."""
    weight_decay: float = Field(ge=0)
    """Decoupled weight decay (paper: 0.1)."""
    gradient_clip: float = Field(ge=0)
    """Largest norm of all gradients together; 0 does not clip (DeepSeek LLM: 1.0)."""
