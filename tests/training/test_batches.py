"""Drawing ahead changes no batch: same order, same values, and each error in the step that needs the batch."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from megatron_dsmath.data.mixture.microbatch import Microbatch
from megatron_dsmath.errors import DataError
from megatron_dsmath.training.batches import StepBatches
from megatron_dsmath.training.state import State
from tests.support.runs import run_config

STEPS, SEQUENCES, LENGTH = 3, 8, 32


class Drawer:
    """Data whose microbatch of a step holds the number of its first sample everywhere; remembers what was drawn."""

    def __init__(self, offset: int = 0) -> None:
        self.offset, self.bad_sample = offset, -1
        self.drawn: list[int] = []
        self.threads: set[str] = set()

    def step_batches(self, first_sample: int, samples: int, *_layout: int) -> list[Microbatch]:
        self.drawn.append(first_sample)
        self.threads.add(threading.current_thread().name)
        if first_sample == self.bad_sample:
            raise DataError("the data is damaged", where=first_sample)
        return [
            Microbatch(
                tokens=np.full((samples, LENGTH + 1), first_sample + self.offset),
                loss_mask=np.ones((samples, LENGTH), np.bool_),
                groups=np.zeros((samples, 1, 1), np.int32),
                document_starts=[np.zeros(1, np.int64)] * samples,
                samples=np.arange(first_sample, first_sample + samples),
            )
        ]


@pytest.fixture
def job() -> Any:
    topology = SimpleNamespace(data_rank=0, data_size=1, device=torch.device("cpu"))
    return SimpleNamespace(run=run_config(schedule__steps=STEPS), topology=topology, batches=Drawer())


@pytest.fixture
def step_batches(job: Any) -> Iterator[StepBatches]:
    with StepBatches(job) as step_batches:
        yield step_batches


def state_at(step: int, skipped: int = 0) -> State:
    return State(step=step, next_sample=step * SEQUENCES + skipped)


def first_token(step_batches: StepBatches, state: State) -> int:
    (batch,) = step_batches.next(state)
    return int(batch.tokens[0, 0])


def wait_until_drawn(drawer: Drawer, count: int) -> None:
    deadline = time.monotonic() + 10
    while len(drawer.drawn) < count and time.monotonic() < deadline:
        time.sleep(0.01)


def test_steps_get_their_batches_in_order_and_the_next_one_is_drawn_by_one_thread_in_the_meantime(
    job: Any, step_batches: StepBatches
) -> None:
    for step in range(STEPS):
        assert first_token(step_batches, state_at(step)) == step * SEQUENCES
        wait_until_drawn(job.batches, min(step + 2, STEPS))
        assert job.batches.drawn == [number * SEQUENCES for number in range(min(step + 2, STEPS))]
    assert job.batches.threads == {"batches_0"}


def test_an_error_is_raised_in_the_step_that_needs_the_batch(job: Any, step_batches: StepBatches) -> None:
    job.batches.bad_sample = SEQUENCES
    assert first_token(step_batches, state_at(0)) == 0
    wait_until_drawn(job.batches, 2)
    with pytest.raises(DataError, match="the data is damaged"):
        step_batches.next(state_at(1))


def test_after_a_skip_or_a_new_plan_the_drawn_batch_is_dropped_with_its_error(
    job: Any, step_batches: StepBatches
) -> None:
    job.batches.bad_sample = SEQUENCES
    step_batches.next(state_at(0))
    assert first_token(step_batches, state_at(1, skipped=SEQUENCES)) == 2 * SEQUENCES
    job.batches = Drawer(offset=1)
    assert first_token(step_batches, state_at(2)) == 2 * SEQUENCES + 1


def test_a_step_that_is_computed_again_gets_the_same_batch(step_batches: StepBatches) -> None:
    assert [first_token(step_batches, replace(state_at(1))) for _ in range(2)] == [SEQUENCES, SEQUENCES]


def test_the_thread_ends_with_the_loop_also_after_an_error(job: Any) -> None:
    before = threading.active_count()
    with pytest.raises(KeyError), StepBatches(job) as step_batches:
        step_batches.next(state_at(0))
        assert threading.active_count() == before + 1
        raise KeyError
    assert threading.active_count() == before
