"""The microbatches of each step: drawn by a thread while the step before is computed, then copied to the device."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from megatron_dsmath.config.phases import phase_at, total_steps
from megatron_dsmath.config.sections import DataConfig
from megatron_dsmath.data.audit.run_batches import RunBatches
from megatron_dsmath.data.mixture.microbatch import Microbatch
from megatron_dsmath.fault_injection import fault_factor, fault_point
from megatron_dsmath.parallel.attention import document_bounds
from megatron_dsmath.parallel.pipeline import DeviceBatch
from megatron_dsmath.training.job import Job
from megatron_dsmath.training.state import State


class _Draw(NamedTuple):
    """Microbatches that the worker thread draws or has drawn, and what they are drawn from."""

    batches: RunBatches
    first_sample: int
    microbatches: Future[Sequence[Microbatch]]


class StepBatches:
    """Draws the microbatches of the next step in a worker thread while the current step is computed.

    The worker reads numpy arrays only; the calling thread copies them to the device. Leaving the context ends the
    worker.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="batches")
        self._ahead: _Draw | None = None

    def __enter__(self) -> StepBatches:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._worker.shutdown(cancel_futures=True)

    def next(self, state: State) -> list[DeviceBatch]:
        """Return the microbatches of the step that follows `state`, and begin to draw those of the step after it.

        Raises the errors of drawing them. Microbatches that were drawn for another sample or from another plan are
        dropped, as after a skipped step or a rewind.
        """
        job, draw = self._job, self._ahead
        if draw is None or draw.batches is not job.batches or draw.first_sample != state.next_sample:
            draw = self._draw(state.next_sample, state.step)
        self._ahead = None
        microbatches = draw.microbatches.result()
        if state.step + 1 < total_steps(job.run):
            samples = phase_at(job.run, state.step).sequences_per_step
            self._ahead = self._draw(state.next_sample + samples, state.step + 1)
        batches = to_device(microbatches, job.run.data, job.topology.device)
        if fault_factor("step.tokens", state.step) != 1.0:
            batches[0].tokens[0, 3] += 1
        return batches

    def _draw(self, first_sample: int, step: int) -> _Draw:
        """Draw the microbatches of the step that follows `step` completed ones in the worker thread."""
        batches, run, topology = self._job.batches, self._job.run, self._job.topology

        def draw() -> Sequence[Microbatch]:
            fault_point("step.draw", step)
            return batches.step_batches(
                first_sample,
                phase_at(run, step).sequences_per_step,
                run.parallel.microbatch_sequences,
                topology.data_rank,
                topology.data_size,
            )

        return _Draw(batches, first_sample, self._worker.submit(draw))


def to_device(microbatches: Iterable[Microbatch], data: DataConfig, device: torch.device) -> list[DeviceBatch]:
    """The microbatches as tensors on `device`."""

    def tensor(array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    def bounds(batch: Microbatch) -> torch.Tensor | None:
        if data.attend_across_documents:
            return None
        return tensor(document_bounds(batch.document_starts, data.sequence_length))

    return [
        DeviceBatch(
            tokens=tensor(batch.tokens),
            loss_mask=tensor(batch.loss_mask.astype(np.float32)),
            groups=tensor(np.maximum(batch.groups, 0).astype(np.int64)),  # PADDING is masked, so group 0 adds nothing
            samples=tensor(batch.samples),
            document_bounds=bounds(batch),
        )
        for batch in microbatches
    ]
