"""A run's steps as the loop takes them, on batches that need no data: what the ranks of tests run and report."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from mmap import mmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from megatron_dsmath.checkpoint.weights import open_weights
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.model import decoder, loss
from megatron_dsmath.model.parameters import parameters
from megatron_dsmath.parallel import collectives, optimizer, pipeline, shards
from megatron_dsmath.parallel.attention import document_bounds
from megatron_dsmath.parallel.pipeline import DeviceBatch
from megatron_dsmath.parallel.topology import Topology, initialize_topology
from megatron_dsmath.schedule.learning_rate import learning_rate

CORPORA = 2
Parts = tuple[int, dict[str, np.ndarray]]  # a tensor-parallel rank and what it holds, by Hugging Face's names


class Figures(NamedTuple):
    """The results of a step: nats per target token, and the gradients' norm before clipping."""

    loss: float
    gradient_norm: float


def deviations(ours: list[Figures], theirs: list[Figures]) -> Figures:
    """The largest relative difference of the losses, and of the gradient norms."""
    pairs = list(zip(ours, theirs, strict=True))
    return Figures(
        max(abs(our.loss / their.loss - 1) for our, their in pairs),
        max(abs(our.gradient_norm / their.gradient_norm - 1) for our, their in pairs),
    )


class Training(NamedTuple):
    """A run, opened on this rank, without its data."""

    run: RunConfig
    topology: Topology
    model_chunks: list[optimizer.DataParallelChunk]
    updater: optimizer.Optimizer

    def accumulate(self, step: int, *, backward: bool = True) -> torch.Tensor:
        """Nats and target tokens by corpus; with `backward`, gradients stay in the buffers."""
        if backward:
            for chunk in self.model_chunks:
                chunk.zero_grad_buffer()
            self.updater.zero_grad()
        loss_of = partial(loss.sum_by_group, groups=CORPORA)
        reports = pipeline.run_microbatches(self.model_chunks, self.share(step), loss_of, backward=backward)
        return collectives.sum_reports(reports, (CORPORA, 2), self.topology).cpu()

    def step(self, step: int) -> Figures:
        """One update."""
        nats, tokens = self.accumulate(step).sum(0)
        rate = learning_rate(self.run, step)
        norm = optimizer.gradient_norm(self.updater)
        optimizer.apply_gradients(self.updater, norm, rate, self.run.optimizer.weight_decay)
        return Figures(float(nats / tokens), norm)

    def share(self, step: int) -> list[DeviceBatch]:
        """This rank's microbatches of a step."""
        size = self.run.parallel.microbatch_sequences
        return microbatches(global_batch(self.run, step), size, self.topology)


def global_batch(run: RunConfig, step: int) -> DeviceBatch:
    """Sequences that count up by a stride, with some noise: something to learn, and in each another share of targets.

    The first sequence has none at all, as padding at the end of a validation set. Where attention stays within
    documents, the last is a single one and the others begin with one of a single token.
    """
    generator = torch.Generator().manual_seed(step)
    sequences, length, vocabulary = run.schedule.sequences_per_step, run.data.sequence_length, run.model.vocabulary_size

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(0, high, shape, generator=generator)

    starts, strides = draw(vocabulary, sequences, 1), 1 + draw(3, sequences, 1)
    tokens = (starts + strides * torch.arange(length + 1)) % vocabulary
    noise = torch.rand(sequences, length + 1, generator=generator) < 0.1
    tokens = torch.where(noise, draw(vocabulary, sequences, length + 1), tokens)
    shares = torch.linspace(0, 1, sequences)[:, None]
    loss_mask = (torch.rand(sequences, length, generator=generator) < shares).float()
    groups, samples = draw(CORPORA, sequences, 1, 1), torch.arange(sequences) + step * sequences
    if run.data.attend_across_documents:
        return DeviceBatch(tokens, loss_mask, groups, samples, None)
    document_starts = [np.unique([0, 1, *draw(length + 1, 2).tolist()]) for _ in range(sequences - 1)]
    bounds = torch.from_numpy(document_bounds([*document_starts, np.zeros(1, np.int64)], length))
    return DeviceBatch(tokens, loss_mask, groups, samples, bounds)


def microbatches(batch: DeviceBatch, size: int, topology: Topology) -> list[DeviceBatch]:
    """This rank's part of a global batch; every data-parallel rank has every `data_size`-th microbatch."""
    first_rows = range(topology.data_rank * size, len(batch.tokens), topology.data_size * size)
    return [_rows(batch, first, first + size, topology.device) for first in first_rows]


def _rows(batch: DeviceBatch, first: int, end: int, device: torch.device) -> DeviceBatch:
    tokens, loss_mask, groups, samples = (tensor[first:end].to(device) for tensor in batch[:4])
    bounds, length = batch.document_bounds, batch.loss_mask.size(1)
    if bounds is not None:
        inside = (first * length <= bounds) & (bounds <= end * length)
        bounds = (bounds[inside] - first * length).to(device)
    return DeviceBatch(tokens, loss_mask, groups, samples, bounds)


def start(run: RunConfig, weights: Path | None = None) -> Training:
    """Open the run with the weights of a checkpoint or a Hugging Face folder, or with those of its seed."""
    topology = initialize_topology(run.parallel, run.seed)
    model_chunks = decoder.build(run, topology)
    source = open_weights(weights) if weights else decoder.WeightsFromSeed(run.model, run.seed)
    decoder.load_weights(model_chunks, run.model, topology, source)
    reduced = optimizer.wrap_data_parallel(run, model_chunks, topology.data_size)
    return Training(run, topology, reduced, optimizer.build(run, reduced))


def train(run: RunConfig, weights: Path, steps: int) -> list[Figures]:
    """The first `steps` steps of a run."""
    training = start(run, weights)
    return [training.step(step) for step in range(steps)]


def gradients(run: RunConfig, weights: Path) -> Parts:
    """The gradients of the first step, before clipping (data-parallel size 1)."""
    training = start(run, weights)
    training.accumulate(0)
    named = decoder.named_parameters(training.model_chunks)
    return parts(training, {name: tensor.main_grad for name, tensor in named})  # type: ignore[attr-defined]


def first_weights(run: RunConfig) -> Parts:
    """The weights that the seed gives."""
    training = start(run)
    return parts(training, {name: tensor.detach() for name, tensor in decoder.named_parameters(training.model_chunks)})


def train_and_save(run: RunConfig, weights: Path, folder: Path, steps: tuple[int, int]) -> list[Figures]:
    """Train, save after `steps[0]` steps, and continue to `steps[1]`; returns the results of the later steps."""
    training = start(run, weights)
    saved_after, end = steps
    for step in range(saved_after):
        training.step(step)
    save(training, folder)
    return [training.step(step) for step in range(saved_after, end)]


def load_and_train(run: RunConfig, folder: Path, again: Path, steps: tuple[int, int]) -> list[Figures]:
    """Load what `train_and_save` saved, save it again to `again`, and continue."""
    training = start(run)
    shards.load(folder, training.model_chunks, training.updater)
    save(training, again)
    return [training.step(step) for step in range(*steps)]


def save(training: Training, folder: Path) -> None:
    """As a checkpoint of the loop does, without the process that writes it."""
    save_shards(folder, training.model_chunks, training.updater, training.topology)


def save_shards(
    folder: Path,
    model_chunks: list[optimizer.DataParallelChunk],
    updater: optimizer.Optimizer,
    topology: Topology,
) -> None:
    """The files of every rank into a new folder."""
    serializer = shards.ShardSerializer(model_chunks, updater, topology)
    memory = mmap(-1, max(1, serializer.size_bytes))
    serializer.prepare(memory)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in serializer.serialize(memory).items():
        (folder / name).write_bytes(content)
    (folder / serializer.file_name).write_bytes(memory[: serializer.size_bytes])
    collectives.barrier()


def parts(training: Training, tensors: Mapping[str, torch.Tensor]) -> Parts:
    """This rank's `tensors` (our names) by Hugging Face's names, in numpy: a tensor would be gone with the rank."""
    table = {parameter.name: parameter for parameter in parameters(training.run.model)}
    groups = training.run.model.key_value_heads // training.topology.tensor_size
    unfused: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        theirs = table[name].unfuse(tensor.float().cpu(), groups)
        unfused |= dict(zip(table[name].hf_names, (part.clone().numpy() for part in theirs), strict=True))
    return training.topology.tensor_rank, unfused


def joined(run: RunConfig, ranks: list[Parts]) -> dict[str, torch.Tensor]:
    """The complete tensors from every rank's parts; copies must be equal bit for bit."""
    splits = {name: parameter.split for parameter in parameters(run.model) for name in parameter.hf_names}
    held: dict[str, list[Any]] = {}
    for _, unfused in sorted(ranks, key=lambda rank: rank[0]):
        for name, part in unfused.items():
            held.setdefault(name, []).append(part)
    whole = {}
    for name, shares in held.items():
        split = splits[name]
        if split is None:
            assert all(np.array_equal(share, shares[0]) for share in shares), name
        whole[name] = torch.from_numpy(shares[0] if split is None else np.concatenate(shares, split))
    return whole
