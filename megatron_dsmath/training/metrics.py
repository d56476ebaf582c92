"""Every number of a step: its name in metrics.jsonl, what it means and in which unit, and its name at W&B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Dense bf16 peak of the data sheets, in FLOP/s, by a part of the device's name.
_PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "H800": 989.4e12, "A100": 312e12, "A800": 312e12, "B200": 2250e12}


def model_flops_utilization(
    tokens_per_second: float, flops_per_token: float, device_name: str, devices: int
) -> float | None:
    """Achieved over peak FLOP/s, attention counted causal (Megatron-LM's convention); None for an unlisted device."""
    peak = next((peak for name, peak in _PEAKS.items() if name in device_name), None)
    return None if peak is None else tokens_per_second * flops_per_token / (peak * devices)


METRICS: dict[str, str] = {
    "step": "Completed optimizer steps, from 1.",
    "consumed_tokens": "Tokens trained on since the first step, `sequence_length` a sample.",
    "consumed_samples": "The number of the next sample: those trained on since the first step, and those passed over.",
    "tokens_by_corpus": "Tokens trained on since the first step, as they were counted in the loss.",
    "epochs_by_corpus": "Passes over a corpus since the first step; 2.33 is two and a third.",
    "loss": "Training loss: mean nats per target token over the step's global batch.",
    "loss_by_corpus": "The same by corpus, or by kind, language and source; null where the step had none of it.",
    "grad_norm": "Norm of all gradients together before clipping, in nats per target token per unit of weight.",
    "loss_sigmas": "Standard deviations by which the loss lies above the mean of the last 128; null before 64 steps.",
    "grad_norm_sigmas": "The same of the gradient norm.",
    "spikes": "Steps since the first with either of these above 6.",
    "rejected_steps": "Steps since the first that were not applied, their data passed over (`guard` in the run file).",
    "learning_rate": "The rate the step's update was made with.",
    "step_seconds": "Wall time of the step, in seconds.",
    "tokens_per_second": "Tokens of the step over its wall time, all devices together.",
    "mfu": "Model FLOP/s over the devices' bf16 peak, attention counted causal; null for a device of unknown peak.",
    "goodput": "Wall time of all steps so far over the time since the first start, restarts and saves included.",
    "restarts": "Starts after the first; going back to a checkpoint on a rejected step counts as one.",
    "lost_steps": "Steps that a restart did again, since the first start.",
    "save_seconds": "Time since the first start in which training stood still for a save, in seconds.",
    "failed_saves": "Saves since the first start that the disk refused, and after which training went on.",
    "validation_loss": "Held-out nats per target token, corpora weighted as the mixture; where it was measured.",
    "validation_loss_by_corpus": "The same over each corpus' held-out part.",
    "evaluation_accuracy": "The share of `--evaluate`'s problems that was answered right; where it was measured.",
    "evaluation_tool_calls": "How often the model called its tool in answering them.",
}

_WANDB_GROUPS = {
    "train": ("loss", "loss_by_corpus", "grad_norm", "learning_rate", "loss_sigmas", "grad_norm_sigmas"),
    "valid": ("validation_loss", "validation_loss_by_corpus"),
    "eval": ("evaluation_accuracy", "evaluation_tool_calls"),
    "perf": ("step_seconds", "tokens_per_second", "mfu"),
    "run": (
        *("step", "consumed_tokens", "consumed_samples", "tokens_by_corpus", "epochs_by_corpus"),
        *("spikes", "rejected_steps", "goodput", "restarts", "lost_steps", "save_seconds", "failed_saves"),
    ),
}
WANDB_NAMES: dict[str, str] = {name: f"{group}/{name}" for group, names in _WANDB_GROUPS.items() for name in names}


def wandb_names(row: Mapping[str, Any]) -> dict[str, float]:
    """A row of metrics.jsonl as W&B gets it: a corpus' number is `train/loss_by_corpus/NAME`; nulls are left out."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{WANDB_NAMES[name]}/{corpus}": number for corpus, number in value.items()}
        else:
            flat[WANDB_NAMES[name]] = value
    return {name: number for name, number in flat.items() if number is not None}
