"""The training loop: the order of the lines is the order of the events of a step."""

from __future__ import annotations

import time
from collections.abc import Callable

from megatron_dsmath.config.phases import total_steps
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.parallel.collectives import true_on_any_rank
from megatron_dsmath.parallel.optimizer import apply_gradients
from megatron_dsmath.parallel.topology import initialize_topology
from megatron_dsmath.schedule.learning_rate import learning_rate
from megatron_dsmath.training.batches import StepBatches
from megatron_dsmath.training.checkpointing import Saver
from megatron_dsmath.training.evaluating import Evaluation, evaluate, validate
from megatron_dsmath.training.guard import reject_step
from megatron_dsmath.training.inputs import Resume
from megatron_dsmath.training.job import open_job
from megatron_dsmath.training.rank_progress import RankProgress
from megatron_dsmath.training.rerun import compute_step
from megatron_dsmath.training.resuming import choose_checkpoint, restore
from megatron_dsmath.training.state import State
from megatron_dsmath.training.tracking import open_tracker


def train(
    run: RunConfig,
    stop_requested: Callable[[], bool],
    resume: Resume = "newest",
    evaluation: Evaluation | None = None,
    progress: RankProgress | None = None,
) -> State:
    """Train, or continue, the run on every rank of the world; returns the final state, which is saved.

    The run stops after the step in which `stop_requested` returns True on any rank. A step has two collectives of all
    ranks: the sums of `compute_step`, and one that agrees on stopping, saving and publishing.
    """
    progress = progress or RankProgress()
    topology = initialize_topology(run.parallel, run.seed)
    progress.topology = topology.coordinates
    checkpoint = choose_checkpoint(run, topology, resume)
    job = open_job(run, topology, checkpoint, progress)
    state = restore(job, checkpoint)
    with (
        open_tracker(job) as tracker,
        Saver(job, tracker.save_failed) as saver,
        StepBatches(job) as step_batches,
    ):
        (stopping,) = true_on_any_rank([stop_requested()], topology)
        while state.step < total_steps(run) and not stopping:
            progress.enter("step", state.step)
            started = time.perf_counter()
            batches = step_batches.next(state)
            sums, judgement = compute_step(job, state, batches)
            if judgement.action != "apply":
                saver.finish()
                state = reject_step(job, state, batches, sums, judgement)
                continue
            rate = learning_rate(run, state.step)
            apply_gradients(job.optimizer, sums.gradient_norm, rate, run.optimizer.weight_decay)
            state = state.after_step(run, sums.tokens_by_corpus, judgement.spike_window)
            job.record_step(state, sums.tokens_hash)
            row = tracker.row(state, sums, judgement, rate, time.perf_counter() - started)
            if run.data.held_out_share and _is_due(run.validation.every_steps, run, state.step):
                progress.enter("validation", state.step)
                row |= validate(job, state)
            if evaluation is not None and _is_due(evaluation.every_steps, run, state.step):
                progress.enter("evaluation", state.step)
                row |= evaluate(job, evaluation, state.step, tracker.log_problems)
            tracker.log(row)
            agreed = true_on_any_rank([stop_requested(), saver.is_due(state), saver.is_writing()], topology)
            stopping, save_is_due, is_writing = agreed
            if not is_writing:
                saver.advance()
            if stopping or save_is_due:
                with tracker.saving(state.step):
                    saver.save(state)
    progress.enter("end", state.step)
    return state


def _is_due(every_steps: int, run: RunConfig, step: int) -> bool:
    return every_steps > 0 and (step % every_steps == 0 or step == total_steps(run))
