"""One run, whole: what `dsmath train RUN.yaml` reads."""

from __future__ import annotations

from typing import Literal

from pydantic import NonNegativeInt

from megatron_dsmath.config.data import DataConfig
from megatron_dsmath.config.guard import GuardConfig
from megatron_dsmath.config.model import ModelConfig
from megatron_dsmath.config.optimizer import OptimizerConfig
from megatron_dsmath.config.output import CheckpointConfig, TrackingConfig, ValidationConfig
from megatron_dsmath.config.parallel import ParallelConfig
from megatron_dsmath.config.schedule import ScheduleConfig
from megatron_dsmath.config.section import Section


class RunConfig(Section):
    """Everything that decides a run. Relative paths are relative to the working directory."""

    output: str
    """The run's directory; a rerun continues what it finds there."""
    seed: NonNegativeInt
    """Decides the order of the data and, without `initial_weights`, the first weights."""
    precision: Literal["fp32", "bf16"]
    """Of activations and of the weights in matrix products; gradients, master weights and moments are fp32."""
    model: ModelConfig
    data: DataConfig
    schedule: ScheduleConfig
    optimizer: OptimizerConfig
    parallel: ParallelConfig
    checkpoint: CheckpointConfig
    validation: ValidationConfig
    tracking: TrackingConfig
    guard: GuardConfig

    @property
    def tokens_per_step(self) -> int:
        """Tokens an optimizer step trains on."""
        return self.schedule.sequences_per_step * self.data.sequence_length
