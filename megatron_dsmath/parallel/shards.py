"""Training state in megatron-core's sharded format: each rank writes its own shard, and any layout can read them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from mmap import mmap
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CONFIG_FNAME, CheckpointingConfig
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME

from megatron_dsmath.parallel.collectives import gather_objects
from megatron_dsmath.parallel.optimizer import DataParallelChunk, Optimizer, gathered_parameters
from megatron_dsmath.parallel.shard_file import ShardFile, describe
from megatron_dsmath.parallel.shard_reader import METADATA, check_metadata
from megatron_dsmath.parallel.state_parts import SHARDING, sharded_weights, state_parts
from megatron_dsmath.parallel.topology import Topology
from megatron_dsmath.parallel.transformer import unwrap_decoder


class ShardSerializer:
    """Writes this rank's part of the training state into memory, as the bytes of the file `file_name` of a checkpoint.

    All ranks create one after the first optimizer step and call its methods together. `size_bytes`: the file's size.
    """

    def __init__(self, model_chunks: Sequence[DataParallelChunk], optimizer: Optimizer, topology: Topology) -> None:
        self._model_chunks, self._optimizer, self._is_first = model_chunks, optimizer, topology.rank == 0
        parts = state_parts(model_chunks, optimizer)
        self._file = ShardFile(f"__{topology.rank}_0.distcp", parts.tensors, parts.objects)
        self.file_name, self.size_bytes = self._file.name, self._file.size_bytes
        entries = gather_objects(self._file.entries, topology)
        self._description = describe(entry for rank in entries for entry in rank) if self._is_first else b""

    def prepare(self, memory: mmap) -> None:
        """Prepare `memory`, zeros of at least `size_bytes`, for `serialize`."""
        self._file.write_constant_bytes(_bytes_of(memory))

    def serialize(self, memory: mmap) -> dict[str, bytes]:
        """Copy the state into `memory`; returns the contents of small files that rank 0 adds, by name (else empty)."""
        with gathered_parameters(self._model_chunks):
            parts = state_parts(self._model_chunks, self._optimizer)
            self._file.write_values(_bytes_of(memory), parts.tensors)
        if not self._is_first:
            return {}
        common = io.BytesIO()
        torch.save(parts.common, common)
        backends = json.dumps(asdict(CheckpointingConfig("torch_dist", 1)))
        return {METADATA: self._description, COMMON_STATE_FNAME: common.getvalue(), CONFIG_FNAME: backends.encode()}


def load(folder: Path, model_chunks: Sequence[torch.nn.Module], optimizer: Optimizer) -> None:
    """Load this rank's weights and optimizer state from shards of any layout; all ranks call it together.

    Moments, master weights and the step count come from the checkpoint, betas and epsilon from the run. Raises
    CheckpointError.
    """
    check_metadata(folder)
    settings = {key: optimizer.param_groups[0][key] for key in ("betas", "eps")}
    weights = sharded_weights(model_chunks)
    moments = optimizer.sharded_state_dict(weights, is_loading=True, metadata=SHARDING)  # creates the moments
    state = dist_checkpointing.load({**weights, "optimizer": moments}, str(folder))
    for index, chunk in enumerate(model_chunks):
        unwrap_decoder(chunk).load_state_dict(state[f"piece{index}"])
    optimizer.load_state_dict(state["optimizer"])
    for group in optimizer.param_groups:
        group.update(settings)


def _bytes_of(memory: mmap) -> torch.Tensor:
    return torch.frombuffer(memory, dtype=torch.uint8)
