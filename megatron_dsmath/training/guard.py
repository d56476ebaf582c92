"""Decides whether a step is applied, before any weight changes; a rejected step is skipped, rewound or stops the run.

All decisions depend only on numbers that are equal on all ranks, so that all ranks decide alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from megatron_dsmath.checkpoint import store
from megatron_dsmath.config.phases import phase_at
from megatron_dsmath.config.sections import GuardConfig
from megatron_dsmath.errors import InternalError
from megatron_dsmath.files import directories
from megatron_dsmath.files.atomic_files import replace_text
from megatron_dsmath.model import decoder
from megatron_dsmath.parallel.collectives import broadcast_object, gather_objects
from megatron_dsmath.parallel.pipeline import DeviceBatch
from megatron_dsmath.training.inputs import open_inputs
from megatron_dsmath.training.job import Job
from megatron_dsmath.training.resuming import restore
from megatron_dsmath.training.state import SIGMAS, SpikeWindow, State
from megatron_dsmath.training.step import StepSums

MOST_REJECTIONS = 3  # at one step; after that the data is not the cause


class Judgement(NamedTuple):
    """The decision about a step."""

    cause: Literal["non_finite", "spike"] | None
    action: Literal["apply", "stop", "skip", "rewind"]
    sigmas: tuple[float | None, float | None]  # of the loss and of the gradient norm (`SpikeWindow.sigmas`)
    spike_window: SpikeWindow  # after the step is applied or rejected
    computed_again: str | None = None  # the result of a second computation of the step, if there was one (`rerun`)


def judge(guard: GuardConfig, state: State, sums: StepSums) -> Judgement:
    """Decide about the step that follows `state` from its loss and gradient norm."""
    numbers, window = (sums.loss, sums.gradient_norm), state.spike_window
    if not all(map(math.isfinite, numbers)):
        return Judgement("non_finite", guard.non_finite, (None, None), window.after_rejection(state.step, spiked=False))
    sigmas = window.sigmas(*numbers)
    if not any(sigma is not None and sigma > SIGMAS for sigma in sigmas):
        return Judgement(None, "apply", sigmas, window.after_step(*numbers, spiked=False))
    if guard.spike == "flag":
        return Judgement("spike", "apply", sigmas, window.after_step(*numbers, spiked=True))
    return Judgement("spike", guard.spike, sigmas, window.after_rejection(state.step, spiked=True))


def reject_step(job: Job, state: State, batches: Sequence[DeviceBatch], sums: StepSums, judgement: Judgement) -> State:
    """Write a report of the rejected step, and return the state to continue from. Raises InternalError to stop."""
    file = _write_report(job, state, batches, sums, judgement)
    window, numbers = judgement.spike_window, f"loss {sums.loss:g}, gradient norm {sums.gradient_norm:g}"
    numbers += f"; computed again: {judgement.computed_again}"
    if judgement.action == "stop" or window.rejected_there > MOST_REJECTIONS:
        skipped = f"; data skipped {window.rejected_there - 1} times already" if window.rejected_there > 1 else ""
        raise InternalError(
            "the loss or the gradient is not finite" if judgement.cause == "non_finite" else "the loss spikes",
            where=f"step {state.step + 1}",
            found=numbers + skipped,
            expected="finite numbers" if judgement.cause == "non_finite" else f"at most {SIGMAS:g} standard deviations",
            fix=f"no weight was changed by this step: read {file}, lower the learning rate, or skip such data with "
            "guard.non_finite: skip",
        )
    if job.topology.rank == 0:
        print(f"step {state.step + 1} is not applied ({judgement.cause}: {numbers}): {judgement.action}", flush=True)
    if judgement.action == "rewind":
        return _rewind(job, state, window)
    state = state.skipping(phase_at(job.run, state.step).sequences_per_step, window)
    _use_plan(job, state)
    return state


def _rewind(job: Job, state: State, window: SpikeWindow) -> State:
    """Load an older checkpoint, and return its state with all samples up to the end of the rejected step skipped."""
    step, end_sample = state.step, state.next_sample + phase_at(job.run, state.step).sequences_per_step
    oldest_first = _checkpoints(job, range(step - job.run.guard.rewind_steps + 1)) if job.topology.rank == 0 else []
    checkpoint = broadcast_object(oldest_first[-1] if oldest_first else None)
    if checkpoint is None:
        raise InternalError(
            "there is no checkpoint to return to",
            where=f"step {step + 1}",
            expected=f"one of step {step - job.run.guard.rewind_steps} or earlier (guard.rewind_steps)",
            fix="raise checkpoint.keep, save more often, lower guard.rewind_steps, or set guard.non_finite: skip",
        )
    inputs = open_inputs(job.run, checkpoint)
    old = inputs.state.spike_window
    window = replace(window, losses=old.losses, gradient_norms=old.gradient_norms)
    job.start = inputs.state.skipping(end_sample - inputs.state.next_sample, window)
    job.batches = inputs.batches
    _use_plan(job, job.start)
    state = restore(job, checkpoint)
    if job.topology.rank == 0:  # only after the older checkpoint is verified and loaded
        for path in _checkpoints(job, range(state.step + 1, step + 1)):
            with directories.report_write_errors(path):
                directories.delete(path)
    return state


def _use_plan(job: Job, state: State) -> None:
    """Draw batches from the plan of `state` from now on, and write the plan to the ledger."""
    assert state.plan is not None
    job.batches = job.batches.with_plan(state.plan)
    if job.topology.rank == 0:
        job.ledger.write_plan(state.plan)


def _checkpoints(job: Job, steps: range) -> list[Path]:
    """The complete checkpoints of these steps, oldest first."""
    rows = store.listing(job.directory.checkpoints)
    return [Path(row["path"]) for row in rows if row["problem"] is None and row["step"] in steps]


def _write_report(job: Job, state: State, batches: Sequence[DeviceBatch], sums: StepSums, judgement: Judgement) -> Path:
    """Write `logs/rejected_step_N_sample_M.json`: the numbers, the ranks that had them first, and all documents."""
    bad_samples = [
        sample
        for batch, report in zip(batches, sums.reports, strict=False)
        if job.topology.tensor_rank == 0 and not bool(report.isfinite().all())
        for sample in batch.samples.tolist()
    ]
    seen = gather_objects((bad_samples, _bad_gradient(job)), job.topology)
    first, count = state.next_sample, phase_at(job.run, state.step).sequences_per_step
    file = job.directory.logs / f"rejected_step_{state.step + 1}_sample_{first}.json"
    if job.topology.rank == 0:
        facts: dict[str, Any] = {
            "step": state.step + 1,
            "cause": judgement.cause,
            "action": judgement.action,
            "computed_again": judgement.computed_again,
            "loss": _json_number(sums.loss),
            "loss_by_corpus": {name: _json_number(loss) for name, loss in sums.loss_by_corpus.items()},
            "grad_norm": _json_number(sums.gradient_norm),
            "loss_sigmas": judgement.sigmas[0],
            "grad_norm_sigmas": judgement.sigmas[1],
            "first_sample": first,
            "samples": count,
            "samples_without_finite_loss": sorted({sample for samples, _ in seen for sample in samples}),
            "first_bad_gradient_by_rank": {str(rank): name for rank, (_, name) in enumerate(seen) if name is not None},
            "passages": [
                {"sample": sample, **passage}
                for sample in range(first, first + count)
                for passage in job.batches.passages(sample)
            ],
        }
        replace_text(file, json.dumps(facts, indent=1) + "\n")
    return file


def _bad_gradient(job: Job) -> str | None:
    """The first weight whose gradient is not finite on this rank, after the sum over its copies; None if all are."""
    for name, tensor in decoder.named_parameters(job.model_chunks):
        if not bool(tensor.main_grad.isfinite().all()):  # type: ignore[attr-defined]
            return name
    return None


def _json_number(value: float | None) -> float | str | None:
    """The value, as text where it is NaN or infinite: JSON has neither."""
    return value if value is None or math.isfinite(value) else str(value)
