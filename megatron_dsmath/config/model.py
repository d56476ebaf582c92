"""What the model is: a LLaMA-shaped decoder (DeepSeekMath 7B: `config.json` of deepseek-math-7b-base)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from megatron_dsmath.config.section import Section


class ModelConfig(Section):
    """The decoder's shape, its numbers at the start, and which kernels compute it."""

    layers: PositiveInt
    """Decoder layers (paper: 30)."""
    hidden_size: PositiveInt
    """Width of the residual stream (paper: 4096)."""
    ffn_hidden_size: PositiveInt
    """Width inside the SwiGLU feed-forward (paper: 11008)."""
    attention_heads: PositiveInt
    """Query heads (paper: 32)."""
    key_value_heads: PositiveInt
    """Key and value heads; fewer than `attention_heads` is grouped-query attention (paper: 32)."""
    vocabulary_size: PositiveInt
    """Rows of the embedding and of the output layer, kept as given, never padded (paper: 102400)."""
    max_position_embeddings: PositiveInt
    """Longest sequence the exported model announces; no parameter depends on it (paper: 4096)."""
    norm_epsilon: float = Field(gt=0)
    """Added to the mean square in RMSNorm (paper: 1e-6)."""
    rope_theta: float = Field(gt=0)
    """Base of the rotary frequencies (paper: 10000)."""
    initial_std: float = Field(gt=0)
    """Standard deviation of weights drawn from the seed (DeepSeek LLM: 0.006); unused with `initial_weights`."""
    initial_weights: str | None
    """A Hugging Face folder or a checkpoint to start from; null draws the weights from the seed."""
    kernels: Literal["torch", "transformer_engine"]
    """Who computes norms, linear layers and attention: torch runs everywhere, TransformerEngine on NVIDIA GPUs."""

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.attention_heads

    @property
    def parameters(self) -> int:
        """How many parameters the model has (paper's shape: 6,910,365,696)."""
        attention = self.hidden_size * self.head_size * 2 * (self.attention_heads + self.key_value_heads)
        feed_forward = 3 * self.hidden_size * self.ffn_hidden_size
        layer = attention + feed_forward + 2 * self.hidden_size
        return self.layers * layer + 2 * self.vocabulary_size * self.hidden_size + self.hidden_size

    def flops_per_token(self, sequence_length: int) -> int:
        """Floating-point operations a trained token costs, forward and backward, causal attention counted half.

        Source: Megatron-LM's present convention (6 N_matmul + 6 layers x hidden x sequence); the input embedding
        is a look-up and costs none.
        """
        matrix_parameters = self.parameters - self.vocabulary_size * self.hidden_size
        matrix_parameters -= (2 * self.layers + 1) * self.hidden_size
        attention = 6 * self.layers * self.attention_heads * self.head_size * sequence_length
        return 6 * matrix_parameters + attention
