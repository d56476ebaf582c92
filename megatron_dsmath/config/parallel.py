"""How the work is spread over processes; the data-parallel size is what remains of the world."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt

from megatron_dsmath.config.section import Section


class ParallelConfig(Section):
    """Tensor, sequence, pipeline and data parallelism, as megatron-core has them."""

    tensor: PositiveInt
    """Processes that share each layer's matrices."""
    sequence: bool
    """Share norms and residuals along the sequence too (needs `tensor` above 1)."""
    pipeline: PositiveInt
    """Stages the layers are cut into."""
    virtual_stages: PositiveInt
    """Pieces of the model each stage holds; above 1 is the interleaved schedule."""
    stage_layers: tuple[PositiveInt, ...] | None
    """Layers of each stage where they do not divide evenly, for example [7, 8, 8, 7]; null divides evenly."""
    distributed_optimizer: bool
    """Share master weights and optimizer state over the data-parallel processes (ZeRO-1)."""
    overlap_communication: bool
    """Reduce gradients and gather parameters while computing (needs `distributed_optimizer`; pays off on GPUs)."""
    recompute: Literal["none", "selective", "full"]
    """Activations thrown away and computed again in the backward pass: none, attention's, or whole layers."""
    microbatch_sequences: PositiveInt
    """Sequences a process computes at once."""

    @property
    def model_size(self) -> int:
        """Processes that hold one copy of the model."""
        return self.tensor * self.pipeline
