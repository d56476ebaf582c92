"""What each rank of a layout computes: the run's first steps, from drawn weights and on drawn batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from megatron_dsmath.checkpoint.huggingface_config import CONFIG, config_from
from megatron_dsmath.checkpoint.safetensors_files import write_safetensors
from megatron_dsmath.checkpoint.weight_reader import tensor_shapes
from megatron_dsmath.checkpoint.weights import open_weights
from megatron_dsmath.config.phases import total_steps
from megatron_dsmath.config.sections import ModelConfig, RunConfig
from megatron_dsmath.data.mixture.microbatch import Microbatch
from megatron_dsmath.model import decoder, loss
from megatron_dsmath.model.parameters import parameters
from megatron_dsmath.parallel import collectives, optimizer, pipeline
from megatron_dsmath.parallel.pipeline import DeviceBatch
from megatron_dsmath.parallel.topology import Topology, destroy_topology, initialize_topology
from megatron_dsmath.training.batches import to_device
from megatron_dsmath.verify_layouts.activation_sums import record_sums
from megatron_dsmath.verify_layouts.compare import RankResult, Tensors

# Large enough that attention depends on positions, documents and the order of heads. With 0.006, the paper's value, it
# would be nearly uniform at a small width, and mistakes in them would not change the loss.
STANDARD_DEVIATION = 0.15
GROUPS = 2
OWN_TOKEN_EVERY = 8  # positions
FIRST_OWN_TOKEN = 2
FIRST_DOCUMENT = 5  # tokens in the shortest first document; it contains the sequence's own token


def write_weights(model: ModelConfig, folder: Path) -> None:
    """Draw each tensor of `model`, norms too, from its own generator; write a Hugging Face folder, which is new."""
    shapes = tensor_shapes(model)

    def draw(name: str) -> torch.Tensor:
        digest = hashlib.sha256(name.encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
        tensor = torch.empty(shapes[name])
        if tensor.ndim == 1:
            return tensor.uniform_(0.5, 1.5, generator=generator)
        return tensor.normal_(0.0, STANDARD_DEVIATION, generator=generator)

    folder.mkdir()
    write_safetensors(folder, {name: (shape, torch.float32) for name, shape in shapes.items()}, draw)
    (folder / CONFIG).write_text(json.dumps(config_from(model, "fp32", {})), encoding="utf-8")


def global_batch(run: RunConfig, step: int) -> Microbatch:
    """The sequences of a step, in order; the same in every layout.

    Token i occurs in sequence i alone, which trains on it, so row i of the embedding's gradient comes from sequence i
    alone. The first sequence has no targets. Sequences have one to four documents.
    """
    generator = np.random.default_rng([run.seed, step])
    sequences, length = run.schedule.sequences_per_step, run.data.sequence_length
    tokens = generator.integers(sequences, run.model.vocabulary_size, (sequences, length + 1))
    tokens[:, FIRST_OWN_TOKEN::OWN_TOKEN_EVERY] = np.arange(sequences)[:, None]
    target_shares = np.linspace(0, 1, sequences)[:, None]
    loss_mask = generator.random((sequences, length)) < target_shares
    loss_mask[1:, FIRST_OWN_TOKEN] = True
    cuts = [generator.integers(FIRST_DOCUMENT, length, index % 4) for index in range(sequences)]
    cuts[1][0] = FIRST_DOCUMENT
    starts = [np.unique(np.append(0, cut)) for cut in cuts]
    groups = generator.integers(0, GROUPS, (sequences, 1, 1)).astype(np.int32)
    return Microbatch(tokens, loss_mask, groups, starts, np.arange(sequences))


def microbatch_rows(run: RunConfig, data_rank: int, data_size: int) -> list[slice]:
    """The rows of the global batch in each microbatch of a data-parallel rank, as in `MixtureBatches.step_batches`."""
    size = run.parallel.microbatch_sequences
    firsts = range(data_rank * size, run.schedule.sequences_per_step, data_size * size)
    return [slice(first, first + size) for first in firsts]


def measure_layout(run: RunConfig, weights: Path) -> RankResult:
    """Start this rank of the run's layout, load its part of the folder `weights`, and compute the run's steps."""
    topology = initialize_topology(run.parallel, run.seed, timeout_minutes=3)
    try:
        return _RankOfLayout(run, weights, topology).compute_steps()
    finally:
        destroy_topology()


class _RankOfLayout:
    """This rank's model and optimizer."""

    def __init__(self, run: RunConfig, weights: Path, topology: Topology) -> None:
        self.run, self.topology = run, topology
        model_chunks = decoder.build(run, topology)
        source = open_weights(weights)
        decoder.load_weights(model_chunks, run.model, topology, source)
        source.close()
        self.model_chunks = optimizer.wrap_data_parallel(run, model_chunks, topology.data_size)
        self.optimizer = optimizer.build(run, self.model_chunks)

    def compute_steps(self) -> RankResult:
        run = self.run
        with record_sums(self.model_chunks, run.model.layers, run.data.sequence_length, self.topology) as sums:
            self._loss(0, backward=False)
        losses, norms, gradients, updated = [], [], Tensors(), []
        for step in range(total_steps(run)):
            losses.append(self._loss(step, backward=True))
            if step == 0:
                optimizer.gather_gradients(self.model_chunks)
                named = decoder.named_parameters(self.model_chunks)
                gradients = self._copies({name: tensor.main_grad for name, tensor in named})  # type: ignore[attr-defined]
            rate, decay = run.schedule.peak_learning_rate, run.optimizer.weight_decay
            norms.append(optimizer.gradient_norm(self.optimizer))
            optimizer.apply_gradients(self.optimizer, norms[-1], rate, decay)
            with optimizer.gathered_parameters(self.model_chunks):
                named = decoder.named_parameters(self.model_chunks)
                updated.append(self._copies({name: tensor.detach() for name, tensor in named}))
        return RankResult(self.topology.tensor_rank, losses, norms, sums, gradients, updated)

    def _loss(self, step: int, *, backward: bool) -> float:
        if backward:
            for chunk in self.model_chunks:
                chunk.zero_grad_buffer()
            self.optimizer.zero_grad()
        loss_of = partial(loss.sum_by_group, groups=GROUPS)
        reports = pipeline.run_microbatches(self.model_chunks, self._microbatches(step), loss_of, backward=backward)
        nats, tokens = collectives.sum_reports(reports, (GROUPS, 2), self.topology).cpu().sum(0)
        return float(nats / tokens)

    def _microbatches(self, step: int) -> list[DeviceBatch]:
        batch, topology = global_batch(self.run, step), self.topology
        rows = microbatch_rows(self.run, topology.data_rank, topology.data_size)
        return to_device((_select_rows(batch, some) for some in rows), self.run.data, topology.device)

    def _copies(self, tensors: Mapping[str, torch.Tensor]) -> Tensors:
        """Copies of this rank's tensors, by Hugging Face name; `tensors` has our names."""
        table = {parameter.name: parameter for parameter in parameters(self.run.model)}
        groups = self.run.model.key_value_heads // self.topology.tensor_size
        copies = Tensors()
        for name, tensor in tensors.items():
            theirs = table[name].unfuse(tensor.float().cpu(), groups)
            copies |= dict(zip(table[name].hf_names, (part.numpy().copy() for part in theirs), strict=True))
        return copies


def _select_rows(batch: Microbatch, rows: slice) -> Microbatch:
    starts = batch.document_starts[rows]
    return Microbatch(batch.tokens[rows], batch.loss_mask[rows], batch.groups[rows], starts, batch.samples[rows])


def transformers_steps(runs: Sequence[RunConfig], weights: Path) -> list[tuple[float, Tensors]]:
    """The loss in nats per target token and the gradients of each run's first step, computed by transformers.

    Where attention stays within documents, each document is a separate forward pass, so that no mask is needed.
    """
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    llama = LlamaForCausalLM.from_pretrained(weights, dtype=torch.float32)
    steps = []
    for run in runs:
        batch, length = global_batch(run, 0), run.data.sequence_length
        total = torch.zeros((), dtype=torch.float64)
        for row, starts in enumerate(batch.document_starts):
            bounds = [0, length] if run.data.attend_across_documents else [*starts.tolist(), length]
            for first, end in pairwise(bounds):
                tokens = torch.from_numpy(batch.tokens[row, first : end + 1])
                logits = llama(tokens[None, :-1]).logits[0]
                nats = torch.nn.functional.cross_entropy(logits, tokens[1:], reduction="none")
                total = total + (nats * torch.from_numpy(batch.loss_mask[row, first:end])).sum()
        mean = total / float(batch.loss_mask.sum())
        llama.zero_grad(set_to_none=True)
        torch.autograd.backward(mean)
        gradients = {name: tensor.grad for name, tensor in llama.named_parameters() if tensor.grad is not None}
        steps.append((mean.item(), {name: gradient.numpy() for name, gradient in gradients.items()}))
    return steps
