"""What the ranks of a world are asked to do. Who asks imports no torch: the work is imported where it is done."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from megatron_dsmath.config.model import ModelConfig
from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.verify_layouts.whole import Measured, Tensors


def gpus() -> int:
    """CUDA devices of this machine."""
    import torch

    return torch.cuda.device_count()


def write_weights(model: ModelConfig, folder: Path) -> None:
    """As `weights.write_weights`."""
    from megatron_dsmath.verify_layouts import weights

    weights.write_weights(model, folder)


def measure(run: RunConfig, folder: Path, fault: str | None) -> Measured:
    """As `measure.measure`."""
    from megatron_dsmath.verify_layouts.measure import measure

    return measure(run, folder, fault)


def their_steps(runs: Sequence[RunConfig], folder: Path) -> list[tuple[float, Tensors]]:
    """As `witness.their_step`, of each run."""
    from megatron_dsmath.verify_layouts.witness import their_step

    return [their_step(run, folder) for run in runs]
