"""THE LOOP, top to bottom."""

from __future__ import annotations

import time
from collections.abc import Callable

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.parallel.collectives import true_on_any_rank
from megatron_dsmath.parallel.optimizer import apply_gradients
from megatron_dsmath.parallel.topology import initialize_topology
from megatron_dsmath.schedule.learning_rate import learning_rate
from megatron_dsmath.training.checkpointing import Saver
from megatron_dsmath.training.evaluating import Evaluation, evaluate
from megatron_dsmath.training.guard import reject_step
from megatron_dsmath.training.inputs import Resume
from megatron_dsmath.training.job import open_job
from megatron_dsmath.training.rank_progress import HERE, enter
from megatron_dsmath.training.rerun import compute_step
from megatron_dsmath.training.resuming import choose_checkpoint, restore
from megatron_dsmath.training.state import State
from megatron_dsmath.training.tokens_hash import hash_of_step, record
from megatron_dsmath.training.tracking import open_tracker
from megatron_dsmath.training.validation import validate


def train(
    run: RunConfig,
    stop_requested: Callable[[], bool],
    resume: Resume = "newest",
    evaluation: Evaluation | None = None,
) -> State:
    """Train, or continue, the run on every rank of the world; returns the final state, which is saved.

    After each step all ranks agree whether `stop_requested` is true on any of them; if so, the run stops there.
    """
    place = initialize_topology(run.parallel, run.seed)
    HERE.topology = place.coordinates
    checkpoint = choose_checkpoint(run, place, resume)
    job = open_job(run, place, checkpoint)
    state = restore(job, checkpoint)
    with open_tracker(job, state) as tracker, Saver(job, tracker.save_failed) as saver:
        stopping = true_on_any_rank(stop_requested(), place)
        while state.step < run.schedule.steps and not stopping:
            enter("step", state.step)
            started = time.perf_counter()
            batches = job.step_batches(state.next_sample)
            sums, judgement = compute_step(job, state, batches)
            tokens_hash = hash_of_step(batches, place)
            if judgement.action != "apply":
                saver.finish()
                state = reject_step(job, state, batches, sums, judgement)
                continue
            rate = learning_rate(run.schedule, state.step)
            apply_gradients(job.optimizer, sums.gradient_norm, rate, run.optimizer.weight_decay)
            state = state.after_step(run, sums.tokens_by_corpus, judgement.memory)
            record(job, state, tokens_hash)
            row = tracker.row(state, sums, judgement, rate, time.perf_counter() - started)
            if run.data.held_out_share and _is_due(run.validation.every_steps, run, state.step):
                enter("validation", state.step)
                row |= validate(job)
            if evaluation is not None and _is_due(evaluation.every_steps, run, state.step):
                enter("evaluation", state.step)
                row |= evaluate(job, evaluation, state.step, tracker.log_problems)
            tracker.log(row)
            saver.poll()
            stopping = true_on_any_rank(stop_requested(), place)
            if stopping or saver.is_due(state):
                with tracker.saving(state.step):
                    saver.save(state)
    enter("end", state.step)
    return state


def _is_due(every_steps: int, run: RunConfig, step: int) -> bool:
    return every_steps > 0 and (step % every_steps == 0 or step == run.schedule.steps)
