"""THE LOOP, top to bottom."""

from __future__ import annotations

import time

from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.errors import StoppedOnRequest
from megatron_dsmath.parallel import topology
from megatron_dsmath.parallel.collectives import any_rank
from megatron_dsmath.parallel.optimizer import update
from megatron_dsmath.schedule.learning_rate import learning_rate
from megatron_dsmath.training.checkpointing import is_due, newest, restore, save
from megatron_dsmath.training.interruption import StopRequest
from megatron_dsmath.training.job import open_job
from megatron_dsmath.training.ledger import hash_of_step, record
from megatron_dsmath.training.state import State
from megatron_dsmath.training.step import mean_by_corpus, run_batches
from megatron_dsmath.training.tracking import open_tracker
from megatron_dsmath.training.validation import validate


def train(run: RunConfig, stop: StopRequest) -> State:
    """Train, or continue, the run on every rank of the world; returns the final state.

    Raises StoppedOnRequest where `stop` was made on any rank before the last step was done; the state is saved.
    """
    place = topology.start(run.parallel, run.seed)
    checkpoint = newest(run, place)
    job = open_job(run, place, checkpoint)
    state = restore(job, checkpoint)
    with open_tracker(job, state) as tracker:
        stopping = any_rank(stop.made, place)
        while state.step < run.schedule.steps and not stopping:
            started = time.perf_counter()
            batches = job.step_batches(state.next_sample)
            totals = run_batches(job, batches, backward=True)
            tokens_hash = hash_of_step(batches, place)
            rate = learning_rate(run.schedule, state.step)
            grad_norm = update(job.optimizer, rate, run.optimizer.weight_decay)
            loss, loss_by_corpus = mean_by_corpus(job, totals)
            state = state.after_step(run, dict(zip(job.batches.names, map(int, totals[:, 1]), strict=True)))
            record(job, state, tokens_hash)
            row = tracker.row(state, loss, loss_by_corpus, grad_norm, rate, time.perf_counter() - started)
            if _validation_is_due(run, state.step):
                row |= validate(job)
            tracker.log(row)
            stopping = any_rank(stop.made, place)
            if stopping or is_due(job, state):
                save(job, state)
    if state.step < run.schedule.steps:
        raise StoppedOnRequest(
            "the run was asked to stop",
            where=run.output,
            found=stop.signal or "a signal to another rank",
            fix=f"run it again: it continues after step {state.step}",
        )
    return state


def _validation_is_due(run: RunConfig, step: int) -> bool:
    every = run.validation.every_steps
    if not every or not run.data.held_out_share:
        return False
    return step % every == 0 or step == run.schedule.steps
