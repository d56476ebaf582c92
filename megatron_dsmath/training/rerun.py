"""A step's result, computed again where that tells a machine's error from the data's; and which rank made the error.

A step draws no random numbers (the model has no dropout) and changes nothing but gradients until it is applied: the
same batches and the same weights are the same bits. Where a kernel is not deterministic, that does not hold.
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
    place: str
    """Its coordinates in the layout; empty for one process alone."""
    host: str
    first: str
    """What differs first."""
    is_own: bool
    """Computed there; else it may have come from another rank."""

    @property
    def name(self) -> str:
        """For people."""
        return f"rank {self.rank}{f' ({self.place})' if self.place else ''} on {self.host}"


def compute_step(job: Job, state: State, batches: Sequence[DeviceBatch]) -> tuple[StepSums, Judgement]:
    """Compute the step that follows `state`, again where need be; its gradients lie in the optimizer's buffers.

    Raises InternalError on all ranks where no two of three computations agree.
    """
    every = job.run.guard.verify_every_steps
    if every and (state.step + 1) % every == 0:
        return _verified(job, state, batches)
    sums = forward_backward(job, batches)
    judgement = judge(job.run.guard, state, sums)
    if judgement.action == "apply":
        return sums, judgement
    return _second_opinion(job, state, batches, sums)


def _verified(job: Job, state: State, batches: Sequence[DeviceBatch]) -> tuple[StepSums, Judgement]:
    """The result that two computations agree on, bit for bit; a third decides where the first two do not."""
    _, first = _observed(job, batches)
    sums, second = _observed(job, batches)
    if deviations := _deviations(job, first, second):
        sums, third = _observed(job, batches)
        pairs = [_deviations(job, first, third), _deviations(job, second, third)]
        if all(pairs):
            raise _no_two_agree(job, state, [deviations, *pairs])
        _tell(job, state, "transient", deviations)
    return sums, judge(job.run.guard, state, sums)._replace(computed_again="the same, bit for bit")


def _second_opinion(
    job: Job, state: State, batches: Sequence[DeviceBatch], rejected: StepSums
) -> tuple[StepSums, Judgement]:
    """The step once more, whose first result is not to be applied: if the second is, the first was a machine's error.

    Nobody had looked at what the ranks exchanged, so that the rank is known only where the others saw nothing.
    """
    first = _end_results(job, rejected, gradients_are_own=False)
    sums = forward_backward(job, batches)
    judgement = judge(job.run.guard, state, sums)
    deviations = _deviations(job, first, _end_results(job, sums, gradients_are_own=False))
    if judgement.action == "apply":
        _tell(job, state, "transient", deviations)
        return sums, judgement
    again = f"as bad, with other bits on {_names(deviations)}" if deviations else "the same, bit for bit"
    return sums, judgement._replace(computed_again=again)


def _observed(job: Job, batches: Sequence[DeviceBatch]) -> tuple[StepSums, Exchanges]:
    with ExchangeRecorder(job.model_chunks) as recorder:
        sums = forward_backward(job, batches)
    return sums, {**recorder.exchanges(), **_end_results(job, sums, gradients_are_own=True)}


def _end_results(job: Job, sums: StepSums, *, gradients_are_own: bool) -> Exchanges:
    """What a computation has come to on this rank: its losses, and the gradients as they are to be applied."""
    gradients = [parameter.grad for parameter in job.optimizer.get_parameters() if parameter.grad is not None]
    return read_checksums(
        {
            ("losses", 0, 1): (True, checksum(sums.reports)),
            ("gradients", 0, 1): (gradients_are_own, checksum(gradients)),
        }
    )


def _deviations(job: Job, one: Exchanges, other: Exchanges) -> list[Deviation]:
    """The ranks that erred between two computations; where that is not known, all that saw it. The same everywhere."""
    found = first_difference(one, other)
    place = job.topology
    here = None if found is None else Deviation(place.rank, place.coordinates, socket.gethostname(), *found)
    seen = [deviation for deviation in gather_objects(here, place) if deviation is not None]
    return [deviation for deviation in seen if deviation.is_own] or seen


def _tell(job: Job, state: State, kind: Literal["transient", "persistent"], deviations: Sequence[Deviation]) -> None:
    """Write a machine's error down in `logs/wrong_results.jsonl`, and say it."""
    if job.topology.rank:
        return
    file = job.directory.logs / "wrong_results.jsonl"
    ranks = [{**deviation._asdict(), "place": deviation.place or None} for deviation in deviations]
    append_row(file, {"time_unix": time.time(), "step": state.step + 1, "kind": kind, "ranks": ranks})
    if kind == "transient":
        print(
            f"step {state.step + 1}: {_names(deviations)} computed something else once; computed again, the error "
            f"did not come back, and the run goes on with the right result ({file})",
            flush=True,
        )


def _no_two_agree(job: Job, state: State, pairs: Sequence[Sequence[Deviation]]) -> InternalError:
    """The error to stop with: three computations, three results."""
    always = set.intersection(*({deviation.rank for deviation in pair} for pair in pairs))
    everyone = {deviation.rank: deviation for pair in pairs for deviation in pair}
    named = [deviation for rank, deviation in sorted(everyone.items()) if rank in always or not always]
    _tell(job, state, "persistent", named)
    return InternalError(
        "a rank computes wrong results" if always else "ranks compute something else each time",
        where=f"step {state.step + 1}, {_names(named)}",
        found=f"three computations from the same weights and data, three results (first in: {named[0].first})",
        expected="the same bits each time",
        fix=f"nothing of this step was applied; start it again without {', '.join(sorted({d.host for d in named}))}. "
        "Where every machine is named so, a kernel there is not deterministic: set guard.verify_every_steps: 0",
    )


def _names(deviations: Sequence[Deviation]) -> str:
    names = ", ".join(deviation.name for deviation in deviations)
    return names if all(deviation.is_own for deviation in deviations) else f"{names} (or who handed it to them)"
