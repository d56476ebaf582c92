"""What one rank does and reports: the run's step as the loop takes it, on a batch that needs no data."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch

from megatron_dsmath.checkpoint.weights import open_weights
from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.model import decoder, loss
from megatron_dsmath.model.parameters import parameters
from megatron_dsmath.parallel import collectives, optimizer, pipeline, topology, whole_gradients
from megatron_dsmath.parallel.documents import document_bounds
from megatron_dsmath.training.job import DeviceBatch
from megatron_dsmath.verify_layouts.batch import GROUPS, global_batch, sequences_of
from megatron_dsmath.verify_layouts.faults import FAULTS
from megatron_dsmath.verify_layouts.stations import watched
from megatron_dsmath.verify_layouts.whole import Measured, Parts


def measure(run: RunConfig, weights: Path, fault: str | None) -> Measured:
    """Load `weights` into this rank's part of the layout, take the run's steps, and report."""
    if fault is not None:
        FAULTS[fault]()
    place = topology.start(run.parallel, run.seed, timeout_minutes=3)
    try:
        return _Rehearsal(run, weights, place).measured()
    finally:
        topology.stop()


class _Rehearsal:
    """A run, opened on this rank, without its data."""

    def __init__(self, run: RunConfig, weights: Path, place: topology.Topology) -> None:
        self.run, self.place = run, place
        pieces = decoder.build(run, place)
        source = open_weights(weights)
        decoder.load_weights(pieces, run.model, place, source)
        source.close()
        self.pieces = optimizer.reduce_gradients(run, pieces, place.data_size)
        self.optimizer = optimizer.build(run, self.pieces)

    def measured(self) -> Measured:
        run = self.run
        with watched(self.pieces, run.model.layers, run.data.sequence_length, self.place) as stations:
            self._loss(0, backward=False)
        losses, norms, gradients, updated = [], [], Parts(), []
        for step in range(run.schedule.steps):
            losses.append(self._loss(step, backward=True))
            if step == 0:
                whole_gradients.gather_gradients(self.pieces)
                named = decoder.named_parameters(self.pieces)
                gradients = self._parts({name: tensor.main_grad for name, tensor in named})  # type: ignore[attr-defined]
            rate, decay = run.schedule.peak_learning_rate, run.optimizer.weight_decay
            norms.append(optimizer.gradient_norm(self.optimizer))
            optimizer.apply_gradients(self.optimizer, norms[-1], rate, decay)
            with optimizer.parameters_in_place(self.pieces):
                named = decoder.named_parameters(self.pieces)
                updated.append(self._parts({name: tensor.detach() for name, tensor in named}))
        return Measured(self.place.tensor_rank, losses, norms, stations, gradients, updated)

    def _loss(self, step: int, *, backward: bool) -> float:
        if backward:
            for piece in self.pieces:
                piece.zero_grad_buffer()
            self.optimizer.zero_grad()
        loss_of = partial(loss.sums_by_group, groups=GROUPS)
        reports = pipeline.run_microbatches(self.pieces, self._microbatches(step), loss_of, backward=backward)
        nats, tokens = collectives.sum_of_reports(reports, (GROUPS, 2), self.place).cpu().sum(0)
        return float(nats / tokens)

    def _microbatches(self, step: int) -> list[DeviceBatch]:
        batch, length = global_batch(self.run, step), self.run.data.sequence_length
        crosses = self.run.data.attend_across_documents

        def place(array: npt.NDArray[Any]) -> torch.Tensor:
            return torch.from_numpy(array).to(self.place.device)

        def microbatch(rows: slice) -> DeviceBatch:
            bounds = None if crosses else place(document_bounds(batch.document_starts[rows], length))
            samples = torch.arange(rows.start, rows.stop, device=self.place.device)
            tokens, loss_mask, groups = (place(part[rows]) for part in (batch.tokens, batch.loss_mask, batch.groups))
            return DeviceBatch(tokens, loss_mask, groups, samples, bounds)

        return [microbatch(rows) for rows in sequences_of(self.run, self.place.data_rank, self.place.data_size)]

    def _parts(self, tensors: Mapping[str, torch.Tensor]) -> Parts:
        """Copies of this rank's `tensors` (our names) by Hugging Face's names."""
        table = {parameter.ours: parameter for parameter in parameters(self.run.model)}
        groups = self.run.model.key_value_heads // self.place.tensor_size
        parts = Parts()
        for name, tensor in tensors.items():
            theirs = table[name].unfuse(tensor.float().cpu(), groups)
            parts |= dict(zip(table[name].theirs, (part.numpy().copy() for part in theirs), strict=True))
        return parts
