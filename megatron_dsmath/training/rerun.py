"""Computes a step, and computes it again where that distinguishes an error of a machine from one of the data.

A step draws no random numbers (the model has no dropout) and changes only gradients until it is applied, so that the
same batches and weights give the same bits, unless a kernel is not deterministic.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from typing import Literal, NamedTuple

from megatron_dsmath.errors import InternalError
from megatron_dsmath.files.atomic_files import append_row
from megatron_dsmath.parallel.collectives import gather_objects
from megatron_dsmath.parallel.exchanges import ExchangeRecorder, Exchanges, checksum, first_difference, read_checksums
from megatron_dsmath.parallel.pipeline import DeviceBatch
from megatron_dsmath.training.guard import Judgement, judge
from megatron_dsmath.training.job import Job
from megatron_dsmath.training.state import State
from megatron_dsmath.training.step import StepSums, forward_backward


class Deviation(NamedTuple):
    """A rank on which two computations of a step differ."""

    rank: int
    place: str  # the rank's coordinates in the layout; empty for a single process
    host: str
    first: str  # the first difference
    is_own: bool  # whether the rank computed the different value; else the value may come from another rank


def compute_step(job: Job, state: State, batches: Sequence[DeviceBatch]) -> tuple[StepSums, Judgement]:
    """Compute the gradients of the step that follows `state` and decide whether to apply them.

    A step that would be rejected is computed again, as is every `guard.verify_every_steps`-th step. Raises
    InternalError on all ranks where no two of three computations agree.
    """
    every = job.run.guard.verify_every_steps
    if every and (state.step + 1) % every == 0:
        return _verified(job, state, batches)
    sums = forward_backward(job, batches)
    judgement = judge(job.run.guard, state, sums)
    if judgement.action == "apply":
        return sums, judgement
    return _computed_again(job, state, batches, sums)


def _verified(job: Job, state: State, batches: Sequence[DeviceBatch]) -> tuple[StepSums, Judgement]:
    """Compute the step twice, and a third time where the results differ; returns the result of two of them."""
    _, first = _observed(job, batches)
    sums, second = _observed(job, batches)
    if deviations := _deviations(job, first, second):
        sums, third = _observed(job, batches)
        pairs = [_deviations(job, first, third), _deviations(job, second, third)]
        if all(pairs):
            raise _disagreement(job, state, [deviations, *pairs])
        _report(job, state, "transient", deviations)
    return sums, judge(job.run.guard, state, sums)._replace(computed_again="the same, bit for bit")


def _computed_again(
    job: Job, state: State, batches: Sequence[DeviceBatch], rejected: StepSums
) -> tuple[StepSums, Judgement]:
    """Compute a step again whose first result was rejected; if the second is not, a machine made an error.

    The first computation did not record the ranks' exchanges, so that the rank that made the error is known only where
    the other ranks have no difference.
    """
    first = _end_results(job, rejected, gradients_are_own=False)
    sums = forward_backward(job, batches)
    judgement = judge(job.run.guard, state, sums)
    deviations = _deviations(job, first, _end_results(job, sums, gradients_are_own=False))
    if judgement.action == "apply":
        _report(job, state, "transient", deviations)
        return sums, judgement
    again = f"rejected too, with other bits on {_names(deviations)}" if deviations else "the same, bit for bit"
    return sums, judgement._replace(computed_again=again)


def _observed(job: Job, batches: Sequence[DeviceBatch]) -> tuple[StepSums, Exchanges]:
    with ExchangeRecorder(job.model_chunks) as recorder:
        sums = forward_backward(job, batches)
    return sums, {**recorder.exchanges(), **_end_results(job, sums, gradients_are_own=True)}


def _end_results(job: Job, sums: StepSums, *, gradients_are_own: bool) -> Exchanges:
    """The results of a computation on this rank: the losses, and the gradients as they would be applied."""
    gradients = [parameter.grad for parameter in job.optimizer.get_parameters() if parameter.grad is not None]
    losses = True, checksum(sums.reports)
    return read_checksums({("losses", 0, 1): losses, ("gradients", 0, 1): (gradients_are_own, checksum(gradients))})


def _deviations(job: Job, one: Exchanges, other: Exchanges) -> list[Deviation]:
    """The ranks that made an error in one of two computations, or all ranks with a difference if that is unknown."""
    found = first_difference(one, other)
    topology = job.topology
    own = None if found is None else Deviation(topology.rank, topology.coordinates, socket.gethostname(), *found)
    deviations = [deviation for deviation in gather_objects(own, topology) if deviation is not None]
    return [deviation for deviation in deviations if deviation.is_own] or deviations


def _report(job: Job, state: State, kind: Literal["transient", "persistent"], deviations: Sequence[Deviation]) -> None:
    """Write an error of a machine to `logs/wrong_results.jsonl`, and print it."""
    if job.topology.rank:
        return
    file = job.directory.logs / "wrong_results.jsonl"
    ranks = [{**deviation._asdict(), "place": deviation.place or None} for deviation in deviations]
    append_row(file, {"time_unix": time.time(), "step": state.step + 1, "kind": kind, "ranks": ranks})
    if kind == "transient":
        print(
            f"step {state.step + 1}: {_names(deviations)} computed a different result once; the step was computed "
            f"again without the error, and the run continues with that result ({file})",
            flush=True,
        )


def _disagreement(job: Job, state: State, pairs: Sequence[Sequence[Deviation]]) -> InternalError:
    """The error of three computations with three results."""
    always = set.intersection(*({deviation.rank for deviation in pair} for pair in pairs))
    everyone = {deviation.rank: deviation for pair in pairs for deviation in pair}
    named = [deviation for rank, deviation in sorted(everyone.items()) if rank in always or not always]
    _report(job, state, "persistent", named)
    return InternalError(
        "a rank computes wrong results" if always else "ranks compute different results each time",
        where=f"step {state.step + 1}, {_names(named)}",
        found=f"three computations of the same step gave three results (first difference: {named[0].first})",
        expected="the same bits each time",
        fix=f"the step was not applied; start the run without {', '.join(sorted({d.host for d in named}))}. If this "
        "happens on every machine, a kernel is not deterministic: set guard.verify_every_steps: 0",
    )


def _names(deviations: Sequence[Deviation]) -> str:
    names = ", ".join(f"rank {d.rank}{f' ({d.place})' if d.place else ''} on {d.host}" for d in deviations)
    return names if all(deviation.is_own for deviation in deviations) else f"{names} (or a rank that sent it to them)"
