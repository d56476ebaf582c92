"""The numbers of a step: their names in metrics.jsonl, their meanings and units, and their names at W&B."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Peak of dense bf16 products in FLOP/s, from the data sheets, by a part of the device's name.
_PEAKS = {"H100": 989.4e12, "H200": 989.4e12, "H800": 989.4e12, "A100": 312e12, "A800": 312e12, "B200": 2250e12}


def model_flops_utilization(
    tokens_per_second: float, flops_per_token: float, device_name: str, devices: int
) -> float | None:
    """Achieved over peak FLOP/s, attention counted causal (Megatron-LM's convention); None for an unlisted device."""
    peak = next((peak for name, peak in _PEAKS.items() if name in device_name), None)
    return None if peak is None else tokens_per_second * flops_per_token / (peak * devices)


METRICS: dict[str, str] = {
    "step": "Completed optimizer steps, from 1.",
    "phase": "The phase of the step, from 1 (`schedule.phases`); 1 in a run without phases.",
    "consumed_tokens": "Tokens trained on since the first step, `sequence_length` per sample.",
    "consumed_samples": "The number of the next sample: all samples trained on or skipped since the first step.",
    "tokens_by_corpus": "Target tokens of each corpus since the first step that were counted in the loss.",
    "epochs_by_corpus": "Passes over each corpus since the first step; 2.33 is two and a third.",
    "loss": "Training loss: mean nats per target token over the step's global batch.",
    "loss_by_corpus": "The loss of each corpus, or of each kind, language and source; null without targets.",
    "grad_norm": "Norm of all gradients together before clipping, in nats per target token per unit of weight.",
    "loss_sigmas": "Standard deviations of the loss above the mean of the last 128 steps; null before 64 steps.",
    "grad_norm_sigmas": "Standard deviations of the gradient norm above the mean of the last 128 steps.",
    "spikes": "Steps since the first with loss_sigmas or grad_norm_sigmas above 6.",
    "rejected_steps": "Steps since the first that were not applied and their data skipped (`guard` in the run file).",
    "learning_rate": "The learning rate of the step's update.",
    "step_seconds": "Wall time of the step, in seconds.",
    "tokens_per_second": "Tokens of the step over its wall time, all devices together.",
    "mfu": "Model FLOP/s over the devices' bf16 peak, attention counted causal; null for a device of unknown peak.",
    "goodput": "Wall time of all steps so far over the time since the first start, restarts and saves included.",
    "restarts": "Starts after the first; a return to a checkpoint after a rejected step counts as one.",
    "lost_steps": "Steps since the first start that a restart trained again.",
    "save_seconds": "Time since the first start in which training waited for saves, in seconds.",
    "failed_saves": "Saves since the first start that failed at the disk, after which training continued.",
    "validation_loss": "Held-out nats per target token, corpora weighted as in the mixture; after a validation.",
    "validation_loss_by_corpus": "The validation loss of each corpus, or of each kind, language and source.",
    "evaluation_accuracy": "The share of `--evaluate`'s problems with a correct answer; after an evaluation.",
    "evaluation_tool_calls": "The number of tool calls in the answers to these problems.",
}

_WANDB_GROUPS = {
    "train": ("loss", "loss_by_corpus", "grad_norm", "learning_rate", "loss_sigmas", "grad_norm_sigmas"),
    "valid": ("validation_loss", "validation_loss_by_corpus"),
    "eval": ("evaluation_accuracy", "evaluation_tool_calls"),
    "perf": ("step_seconds", "tokens_per_second", "mfu"),
    "run": (
        *("step", "phase", "consumed_tokens", "consumed_samples", "tokens_by_corpus", "epochs_by_corpus"),
        *("spikes", "rejected_steps", "goodput", "restarts", "lost_steps", "save_seconds", "failed_saves"),
    ),
}
WANDB_NAMES: dict[str, str] = {name: f"{group}/{name}" for group, names in _WANDB_GROUPS.items() for name in names}


def wandb_names(row: Mapping[str, Any]) -> dict[str, float]:
    """A row of metrics.jsonl under W&B's names, as `train/loss_by_corpus/NAME`; entries that are null are left out."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= {f"{WANDB_NAMES[name]}/{corpus}": number for corpus, number in value.items()}
        else:
            flat[WANDB_NAMES[name]] = value
    return {name: number for name, number in flat.items() if number is not None}
