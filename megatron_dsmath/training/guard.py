"""Whether a step is applied, judged before any weight changes; and what the run goes on from where it is not.

Everything here is decided from numbers that all ranks have agreed on, so that all decide alike.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from megatron_dsmath.checkpoint import store
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

MOST_REJECTIONS = 3  # without getting further: then it is not the data


class Judgement(NamedTuple):
    """What a step's numbers say of it."""

    cause: Literal["non_finite", "spike"] | None
    action: Literal["apply", "stop", "skip", "rewind"]
    sigmas: tuple[float | None, float | None]
    """Of the loss and of the gradient norm, as `SpikeWindow.sigmas`."""
    memory: SpikeWindow
    """What to remember once the step is applied, or rejected."""
    computed_again: str | None = None
    """What came of computing the step once more, where that was done (`training.recomputation`)."""


def judge(guard: GuardConfig, state: State, sums: StepSums) -> Judgement:
    """Look at the numbers of the step that follows `state`."""
    numbers = sums.loss, sums.gradient_norm
    if not all(map(math.isfinite, numbers)):
        memory = state.memory.after_rejection(state.step, spiked=False)
        return Judgement("non_finite", guard.non_finite, (None, None), memory)
    sigmas = state.memory.sigmas(*numbers)
    if not any(sigma is not None and sigma > SIGMAS for sigma in sigmas):
        return Judgement(None, "apply", sigmas, state.memory.after_step(*numbers, spiked=False))
    if guard.spike == "flag":
        return Judgement("spike", "apply", sigmas, state.memory.after_step(*numbers, spiked=True))
    return Judgement("spike", guard.spike, sigmas, state.memory.after_rejection(state.step, spiked=True))


def reject_step(job: Job, state: State, batches: Sequence[DeviceBatch], sums: StepSums, judgement: Judgement) -> State:
    """Write down what was in a rejected step, and return the state to go on from. Raises InternalError to stop."""
    file = _write_down(job, state, batches, sums, judgement)
    memory, numbers = judgement.memory, f"loss {sums.loss:g}, gradient norm {sums.gradient_norm:g}"
    numbers += f"; computed again: {judgement.computed_again}"
    if judgement.action == "stop" or memory.rejected_there > MOST_REJECTIONS:
        tried = f"; {memory.rejected_there - 1} times passed over already" if memory.rejected_there > 1 else ""
        raise InternalError(
            "the loss or the gradient is not finite" if judgement.cause == "non_finite" else "the loss spikes",
            where=f"step {state.step + 1}",
            found=numbers + tried,
            expected="finite numbers" if judgement.cause == "non_finite" else f"at most {SIGMAS:g} standard deviations",
            fix=f"the weights are those of step {state.step}, the checkpoints older still: look at {file}, lower the "
            "learning rate, or pass over such data with guard.non_finite: skip",
        )
    if job.topology.rank == 0:
        print(f"step {state.step + 1} is not applied ({judgement.cause}: {numbers}): {judgement.action}", flush=True)
    return _skip(job, state, memory) if judgement.action == "skip" else _rewind(job, state, memory)


def _skip(job: Job, state: State, memory: SpikeWindow) -> State:
    """The same state but for the data: the samples of the rejected step are passed over."""
    state = state.passing_over(job.run.schedule.sequences_per_step, memory)
    _follow(job, state)
    return state


def _rewind(job: Job, state: State, memory: SpikeWindow) -> State:
    """An older checkpoint's state, with the data from there to the rejected step's end passed over."""
    step, end_sample = state.step, state.next_sample + job.run.schedule.sequences_per_step
    checkpoint = broadcast_object(_before(job, step - job.run.guard.rewind_steps) if job.topology.rank == 0 else None)
    if checkpoint is None:
        raise InternalError(
            "there is no checkpoint to go back to",
            where=f"step {step + 1}",
            expected=f"one of step {step - job.run.guard.rewind_steps} or before (guard.rewind_steps)",
            fix="raise checkpoint.keep, save more often, or set guard.rewind_steps lower or guard.non_finite: skip",
        )
    inputs = open_inputs(job.run, checkpoint)
    old = inputs.state.memory
    memory = replace(memory, losses=old.losses, gradient_norms=old.gradient_norms)
    job.start = inputs.state.passing_over(end_sample - inputs.state.next_sample, memory)
    job.batches = inputs.batches
    _follow(job, job.start)
    state = restore(job, checkpoint)
    if job.topology.rank == 0:  # now that the older one is verified and loaded
        for path in _checkpoints(job, range(state.step + 1, step + 1)):
            with directories.report_write_errors(path):
                directories.delete(path)
    return state


def _follow(job: Job, state: State) -> None:
    """Read by the plan of `state` from now on, and say so in the ledger."""
    assert state.plan is not None
    job.batches = job.batches.with_plan(state.plan)
    if job.topology.rank == 0:
        job.ledger.write_plan(state.plan)


def _before(job: Job, step: int) -> Path | None:
    """The newest whole checkpoint of `step` or before."""
    older = _checkpoints(job, range(step + 1))
    return older[-1] if older else None


def _checkpoints(job: Job, steps: range) -> list[Path]:
    """The whole checkpoints of these steps, oldest first."""
    rows = store.listing(job.directory.checkpoints)
    return [Path(row["path"]) for row in rows if row["problem"] is None and row["step"] in steps]


def _write_down(job: Job, state: State, batches: Sequence[DeviceBatch], sums: StepSums, judgement: Judgement) -> Path:
    """`logs/rejected_step_N_sample_M.json`: the numbers, who saw them first, and every document of the batch."""
    bad_samples = [
        sample
        for batch, report in zip(batches, sums.reports, strict=False)
        if job.topology.tensor_rank == 0 and not bool(report.isfinite().all())
        for sample in batch.samples.tolist()
    ]
    seen = gather_objects((bad_samples, _bad_gradient(job)), job.topology)
    first, count = state.next_sample, job.run.schedule.sequences_per_step
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
    """The first weight whose gradient on this rank, after it was summed over the copies, is no number."""
    for name, tensor in decoder.named_parameters(job.model_chunks):
        if not bool(tensor.main_grad.isfinite().all()):  # type: ignore[attr-defined]
            return name
    return None


def _json_number(value: float | None) -> float | str | None:
    """JSON has no NaN and no infinity."""
    return value if value is None or math.isfinite(value) else str(value)
