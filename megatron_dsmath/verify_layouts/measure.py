"""What one rank does and reports: the run's step as the loop takes it, on a batch that needs no data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from megatron_dsmath.checkpoint.huggingface_config import CONFIG, config_from
from megatron_dsmath.checkpoint.safetensors_files import write_safetensors
from megatron_dsmath.checkpoint.weight_reader import tensor_shapes
from megatron_dsmath.checkpoint.weights import open_weights
from megatron_dsmath.config.sections import ModelConfig, RunConfig
from megatron_dsmath.data.mixture.microbatch import Microbatch
from megatron_dsmath.model import decoder, loss
from megatron_dsmath.model.parameters import parameters
from megatron_dsmath.parallel import collectives, optimizer, pipeline
from megatron_dsmath.parallel.pipeline import DeviceBatch
from megatron_dsmath.parallel.topology import Topology, destroy_topology, initialize_topology
from megatron_dsmath.training.job import to_device
from megatron_dsmath.verify_layouts.activation_sums import watched
from megatron_dsmath.verify_layouts.compare import Measured, Parts
from megatron_dsmath.verify_layouts.planted_faults import FAULTS

# Queries and keys of this deviation give attention something to choose between, which 0.006 at a small width would not:
# positions, documents and the order of heads then weigh in the loss.
STANDARD_DEVIATION = 0.15


def write_weights(model: ModelConfig, folder: Path) -> None:
    """Draw every tensor of `model`, norms too, each from a generator of its own, and write them into a new folder."""
    shapes = tensor_shapes(model)

    def drawn(name: str) -> torch.Tensor:
        digest = hashlib.sha256(name.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        tensor = torch.empty(shapes[name])
        if tensor.ndim == 1:
            return tensor.uniform_(0.5, 1.5, generator=generator)
        return tensor.normal_(0.0, STANDARD_DEVIATION, generator=generator)

    folder.mkdir()
    write_safetensors(folder, {name: (shape, torch.float32) for name, shape in shapes.items()}, drawn)
    (folder / CONFIG).write_text(json.dumps(config_from(model, "fp32", {})), encoding="utf-8")


def their_step(run: RunConfig, folder: Path) -> tuple[float, dict[str, npt.NDArray[np.float32]]]:
    """The loss of the first step in nats per target, and its gradients by name.

    Where attention stays within documents, each document is run by itself: no mask of theirs is trusted either.
    """
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    llama = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    batch, length = global_batch(run, 0), run.data.sequence_length
    total = torch.zeros((), dtype=torch.float64)
    for row, starts in enumerate(batch.document_starts):
        bounds = [0, length] if run.data.attend_across_documents else [*starts.tolist(), length]
        for first, end in pairwise(bounds):
            tokens = torch.from_numpy(batch.tokens[row, first : end + 1])
            logits = llama(tokens[None, :-1]).logits[0]
            nats = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
            total = total + (nats * torch.from_numpy(batch.loss_mask[row, first:end])).sum()
    loss = total / float(batch.loss_mask.sum())
    torch.autograd.backward(loss)
    gradients = {name: tensor.grad for name, tensor in llama.named_parameters()}
    return loss.item(), {name: gradient.numpy() for name, gradient in gradients.items() if gradient is not None}


GROUPS = 2
OWN_TOKEN_EVERY = 8  # positions
FIRST_OWN_TOKEN = 2
FIRST_DOCUMENT = 5  # the shortest that a sequence begins with, in tokens; it holds the sequence's own token


def global_batch(run: RunConfig, step: int) -> Microbatch:
    """The sequences of a step, in order; the same in every layout."""
    draw = np.random.default_rng([run.seed, step])
    sequences, length = run.schedule.sequences_per_step, run.data.sequence_length
    tokens = draw.integers(sequences, run.model.vocabulary_size, (sequences, length + 1))
    tokens[:, FIRST_OWN_TOKEN::OWN_TOKEN_EVERY] = np.arange(sequences)[:, None]
    shares = np.linspace(0, 1, sequences)[:, None]
    loss_mask = draw.random((sequences, length)) < shares
    loss_mask[1:, FIRST_OWN_TOKEN] = True
    # From one document to four; the shortest first one bounds where packing can show.
    cuts = [draw.integers(FIRST_DOCUMENT, length, index % 4) for index in range(sequences)]
    cuts[1][0] = FIRST_DOCUMENT
    starts = [np.unique(np.append(0, cut)) for cut in cuts]
    groups = draw.integers(0, GROUPS, (sequences, 1, 1)).astype(np.int32)
    return Microbatch(tokens, loss_mask, groups, starts, np.arange(sequences))


def _part(batch: Microbatch, rows: slice) -> Microbatch:
    starts = batch.document_starts[rows]
    return Microbatch(batch.tokens[rows], batch.loss_mask[rows], batch.groups[rows], starts, batch.samples[rows])


def sequences_of(run: RunConfig, data_rank: int, data_size: int) -> list[slice]:
    """The sequences of each microbatch of a data-parallel rank, as `MixtureBatches.step_batches` deals them."""
    size = run.parallel.microbatch_sequences
    firsts = range(data_rank * size, run.schedule.sequences_per_step, data_size * size)
    return [slice(first, first + size) for first in firsts]


def measure(run: RunConfig, weights: Path, fault: str | None) -> Measured:
    """Load `weights` into this rank's part of the layout, take the run's steps, and report."""
    if fault is not None:
        FAULTS[fault]()
    place = initialize_topology(run.parallel, run.seed, timeout_minutes=3)
    try:
        return _Rehearsal(run, weights, place).measured()
    finally:
        destroy_topology()


class _Rehearsal:
    """A run, opened on this rank, without its data."""

    def __init__(self, run: RunConfig, weights: Path, place: Topology) -> None:
        self.run, self.place = run, place
        model_chunks = decoder.build(run, place)
        source = open_weights(weights)
        decoder.load_weights(model_chunks, run.model, place, source)
        source.close()
        self.model_chunks = optimizer.wrap_data_parallel(run, model_chunks, place.data_size)
        self.optimizer = optimizer.build(run, self.model_chunks)

    def measured(self) -> Measured:
        run = self.run
        with watched(self.model_chunks, run.model.layers, run.data.sequence_length, self.place) as stations:
            self._loss(0, backward=False)
        losses, norms, gradients, updated = [], [], Parts(), []
        for step in range(run.schedule.steps):
            losses.append(self._loss(step, backward=True))
            if step == 0:
                optimizer.gather_gradients(self.model_chunks)
                named = decoder.named_parameters(self.model_chunks)
                gradients = self._parts({name: tensor.main_grad for name, tensor in named})  # type: ignore[attr-defined]
            rate, decay = run.schedule.peak_learning_rate, run.optimizer.weight_decay
            norms.append(optimizer.gradient_norm(self.optimizer))
            optimizer.apply_gradients(self.optimizer, norms[-1], rate, decay)
            with optimizer.gathered_parameters(self.model_chunks):
                named = decoder.named_parameters(self.model_chunks)
                updated.append(self._parts({name: tensor.detach() for name, tensor in named}))
        return Measured(self.place.tensor_rank, losses, norms, stations, gradients, updated)

    def _loss(self, step: int, *, backward: bool) -> float:
        if backward:
            for chunk in self.model_chunks:
                chunk.zero_grad_buffer()
            self.optimizer.zero_grad()
        loss_of = partial(loss.sum_by_group, groups=GROUPS)
        reports = pipeline.run_microbatches(self.model_chunks, self._microbatches(step), loss_of, backward=backward)
        nats, tokens = collectives.sum_reports(reports, (GROUPS, 2), self.place).cpu().sum(0)
        return float(nats / tokens)

    def _microbatches(self, step: int) -> list[DeviceBatch]:
        batch, place = global_batch(self.run, step), self.place
        rows = sequences_of(self.run, place.data_rank, place.data_size)
        return to_device((_part(batch, some) for some in rows), self.run.data, place.device)

    def _parts(self, tensors: Mapping[str, torch.Tensor]) -> Parts:
        """Copies of this rank's `tensors` (our names) by Hugging Face's names."""
        table = {parameter.name: parameter for parameter in parameters(self.run.model)}
        groups = self.run.model.key_value_heads // self.place.tensor_size
        parts = Parts()
        for name, tensor in tensors.items():
            theirs = table[name].unfuse(tensor.float().cpu(), groups)
            parts |= dict(zip(table[name].hf_names, (part.numpy().copy() for part in theirs), strict=True))
        return parts
