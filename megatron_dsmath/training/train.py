"""THE LOOP, top to bottom."""

from __future__ import annotations

import time

from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.errors import StoppedOnRequest
from megatron_dsmath.parallel import topology
from megatron_dsmath.parallel.collectives import any_rank
from megatron_dsmath.parallel.optimizer import update
from megatron_dsmath.schedule.learning_rate import learning_rate
from megatron_dsmath.training.checkpointing import is_due, restore, save
from megatron_dsmath.training.interruption import StopRequest
from megatron_dsmath.training.job import open_job
from megatron_dsmath.training.state import State
from megatron_dsmath.training.step import mean_by_corpus, run_batches
from megatron_dsmath.training.tracking import open_tracker
from megatron_dsmath.training.validation import validate


def train(run: RunConfig) -> State:
    """Train, or continue, the run on every rank of the world; returns the final state.

    Raises StoppedOnRequest after a signal, with the state saved if a step had run.
    """
    stop = StopRequest()
    stop.listen()
    place = topology.start(run.parallel, run.seed)
    job = open_job(run, place)
    state = restore(job)
    with open_tracker(job, state) as tracker:
        while state.step < run.schedule.steps:
            started = time.perf_counter()
            totals = run_batches(job, job.step_batches(state.next_sample), backward=True)
            rate = learning_rate(run.schedule, state.step)
            grad_norm = update(job.optimizer, rate, run.optimizer.weight_decay)
            loss, loss_by_corpus = mean_by_corpus(job, totals)
            state = state.after_step(run, dict(zip(job.batches.names, map(int, totals[:, 1]), strict=True)))
            row = tracker.row(state, loss, loss_by_corpus, grad_norm, rate, time.perf_counter() - started)
            if _every(run.validation.every_steps, state.step, run.schedule.steps):
                row |= validate(job)
            tracker.log(row)
            stopping = any_rank(stop.made, place)
            if stopping or is_due(job, state):
                save(job, state)
            if stopping:
                raise StoppedOnRequest(
                    "the run was asked to stop",
                    where=run.output,
                    found=stop.signal or "a signal to another rank",
                    fix=f"run it again: it continues after step {state.step}",
                )
    return state


def _every(interval: int, step: int, last: int) -> bool:
    return interval > 0 and (step % interval == 0 or step == last)
