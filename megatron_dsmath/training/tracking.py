"""Writes the numbers of each step to metrics.jsonl, the console and W&B, on rank 0."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from megatron_dsmath.config.phases import phase_at, phase_index, total_steps
from megatron_dsmath.errors import OutputError
from megatron_dsmath.fault_injection import fault_point
from megatron_dsmath.files.atomic_files import append_row
from megatron_dsmath.training.goodput import Goodput
from megatron_dsmath.training.guard import Judgement
from megatron_dsmath.training.job import Job
from megatron_dsmath.training.metrics import model_flops_utilization
from megatron_dsmath.training.state import State
from megatron_dsmath.training.step import StepSums
from megatron_dsmath.training.weights_and_biases import WeightsAndBiases

Row = dict[str, Any]
_ALWAYS_SHOWN = ("validation_loss", "evaluation_accuracy")


class Tracker:
    """Makes the metrics row of a step, and writes it to every output."""

    def __init__(self, job: Job, wandb: WeightsAndBiases | None, progress: Progress | None) -> None:
        self.job, self.wandb, self.progress = job, wandb, progress
        self.task = progress.add_task("", total=total_steps(job.run), line="") if progress else None
        self.goodput = self._goodput()
        self.next_step = 0
        self.flops_per_token = job.run.model.flops_per_token(job.run.data.sequence_length)
        device = job.topology.device
        self.device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"

    def row(self, state: State, sums: StepSums, judgement: Judgement, learning_rate: float, step_seconds: float) -> Row:
        """The row of a step in metrics.jsonl; `metrics.METRICS` describes each entry."""
        if state.step != self.next_step:  # the first step, or the first after a return to a checkpoint
            self.goodput = self._goodput()
        self.goodput.useful_seconds += step_seconds
        self.next_step = state.step + 1
        tokens_per_second = phase_at(self.job.run, state.step - 1).tokens_per_step / step_seconds
        return {
            "step": state.step,
            "phase": 1 + phase_index(self.job.run, state.step - 1),
            "consumed_tokens": state.consumed_tokens,
            "consumed_samples": state.next_sample,
            "loss": sums.loss,
            "loss_by_corpus": sums.loss_by_corpus,
            "tokens_by_corpus": dict(state.tokens_by_corpus),
            "epochs_by_corpus": self.job.batches.epochs(state.next_sample),
            "grad_norm": sums.gradient_norm,
            "loss_sigmas": judgement.sigmas[0],
            "grad_norm_sigmas": judgement.sigmas[1],
            "spikes": state.spike_window.spikes,
            "rejected_steps": state.spike_window.rejected_steps,
            "learning_rate": learning_rate,
            "step_seconds": step_seconds,
            "tokens_per_second": tokens_per_second,
            "mfu": model_flops_utilization(
                tokens_per_second, self.flops_per_token, self.device_name, self.job.topology.world_size
            ),
            **self.goodput.facts(),
        }

    def log(self, row: Row) -> None:
        """Append the row to metrics.jsonl, print it, and send it to W&B; only on rank 0."""
        if self.job.topology.rank == 0:
            self._log(row)
        fault_point("step.logged", row["step"])

    def _log(self, row: Row) -> None:
        append_row(self.job.directory.metrics, row)
        if row["step"] % self.job.run.tracking.console_every_steps == 0 or not row.keys().isdisjoint(_ALWAYS_SHOWN):
            if self.progress is None:
                steps = total_steps(self.job.run)
                remaining = _duration((steps - row["step"]) * row["step_seconds"])
                print(f"step {row['step']}/{steps}  {_line(row)}  about {remaining} left", flush=True)
            self.job.directory.write_status("running", None, row["step"], **self.goodput.facts())
        if self.progress is not None and self.task is not None:
            self.progress.update(self.task, completed=row["step"], line=_line(row))
        if self.wandb is not None:
            self.wandb.log(row)

    def log_problems(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Send the problems of an evaluation after `step`, and the model's answers, to W&B."""
        if self.wandb is not None:
            self.wandb.log_problems(step, rows)

    @contextmanager
    def saving(self, step: int) -> Iterator[None]:
        """The context in which the state after `step` is saved; measures how long training waits for it."""
        self.job.progress.enter("save", step)
        started = time.perf_counter()
        yield
        if self.job.topology.rank == 0:
            self.goodput.add_save(self.job.directory, step, time.perf_counter() - started)

    def save_failed(self, step: int, error: OutputError) -> None:
        """Report that the state after `step` could not be saved and that the run continues."""
        if self.job.topology.rank:
            return
        reason = f"{error.what} ({error.where}: {error.found})"
        print(f"step {step} is not saved: {reason}", file=sys.stderr, flush=True)
        self.goodput.add_failed_save(self.job.directory, step, reason)

    def _goodput(self) -> Goodput:
        return Goodput(time.time()) if self.job.topology.rank else Goodput.of(self.job.directory)


@contextmanager
def open_tracker(job: Job) -> Iterator[Tracker]:
    """A tracker for the run; closes its outputs at the end, also after an error."""
    wandb, progress, settings = None, None, job.run.tracking
    if job.topology.rank == 0:
        config = job.run.model_dump(mode="json")
        wandb = WeightsAndBiases.start(settings.wandb_project, settings.wandb, job.directory, config)
        console = Console()
        if console.is_terminal:
            columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[line]}"), TimeRemainingColumn())
            progress = Progress(*columns, console=console)
            progress.start()
    try:
        yield Tracker(job, wandb, progress)
    finally:
        if progress is not None:
            progress.stop()
        if wandb is not None:
            wandb.close()


def _line(row: Row) -> str:
    validation = f"  validation {row['validation_loss']:.4f}" if "validation_loss" in row else ""
    if "evaluation_accuracy" in row:
        validation += f"  correct {100 * row['evaluation_accuracy']:.1f}%"
    speed = f"{row['tokens_per_second']:,.0f} tokens/s"
    return f"loss {row['loss']:.4f}{validation}  rate {row['learning_rate']:.2e}  norm {row['grad_norm']:.2f}  {speed}"


def _duration(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.gmtime(seconds)) if seconds < 86400 else f"{seconds / 86400:.1f} days"
