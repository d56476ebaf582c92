"""A training state in megatron-core's sharded format: each rank writes its part, any layout reads it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import asdict
from mmap import mmap
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.core import CONFIG_FNAME, CheckpointingConfig
from megatron.core.dist_checkpointing.strategies.common import COMMON_STATE_FNAME

from megatron_dsmath.parallel.collectives import gather
from megatron_dsmath.parallel.optimizer import Optimizer, ReducedPiece, parameters_in_place
from megatron_dsmath.parallel.shard_file import ShardFile, describe
from megatron_dsmath.parallel.shard_reader import METADATA, check_metadata
from megatron_dsmath.parallel.state_parts import SHARDING, state_parts
from megatron_dsmath.parallel.topology import Topology
from megatron_dsmath.parallel.transformer import unwrapped


class Snapshots:
    """Copies of this rank's part of a state, each laid out as the bytes of `file_name` in a checkpoint.

    Every rank makes one, once the optimizer has done a step, and calls the methods alike. `size_bytes`: of the file.
    """

    def __init__(self, pieces: Sequence[ReducedPiece], optimizer: Optimizer, topology: Topology) -> None:
        self._pieces, self._optimizer, self._is_first = pieces, optimizer, topology.rank == 0
        parts = state_parts(pieces, optimizer)
        self._file = ShardFile(f"__{topology.rank}_0.distcp", parts.tensors, parts.objects)
        self.file_name, self.size_bytes = self._file.name, self._file.size_bytes
        entries = gather(self._file.entries, topology)
        self._description = describe(entry for rank in entries for entry in rank) if self._is_first else b""

    def prepare(self, memory: mmap) -> None:
        """Make `memory`, fresh and of `size_bytes`, ready for `take`."""
        self._file.frame(_bytes_of(memory))

    def take(self, memory: mmap) -> dict[str, bytes]:
        """Copy the state into `memory`; returns the small files that rank 0 adds, by name, and on others none."""
        with parameters_in_place(self._pieces):
            parts = state_parts(self._pieces, self._optimizer)
            self._file.fill(_bytes_of(memory), parts.tensors)
        if not self._is_first:
            return {}
        common = io.BytesIO()
        torch.save(parts.common, common)
        backends = json.dumps(asdict(CheckpointingConfig("torch_dist", 1)))
        return {METADATA: self._description, COMMON_STATE_FNAME: common.getvalue(), CONFIG_FNAME: backends.encode()}


def load(folder: Path, pieces: Sequence[torch.nn.Module], optimizer: Optimizer) -> None:
    """Read weights and optimizer state of any layout into this rank's; every rank calls it. Raises CheckpointError.

    Moments, master weights and the step count come from the checkpoint, the optimizer's numbers from the run.
    """
    check_metadata(folder)
    numbers = {key: optimizer.param_groups[0][key] for key in ("betas", "eps")}
    state = dist_checkpointing.load(_places(pieces, optimizer), str(folder))
    for index, piece in enumerate(pieces):
        unwrapped(piece).load_state_dict(state[f"piece{index}"])
    optimizer.load_state_dict(state["optimizer"])
    for group in optimizer.param_groups:
        group.update(numbers)


def _places(pieces: Sequence[torch.nn.Module], optimizer: Optimizer) -> dict[str, Any]:
    """Where what is read belongs; this also creates the moments."""
    weights = {
        f"piece{index}": unwrapped(piece).sharded_state_dict(metadata=SHARDING) for index, piece in enumerate(pieces)
    }
    return {**weights, "optimizer": optimizer.sharded_state_dict(weights, is_loading=True, metadata=SHARDING)}


def _bytes_of(memory: mmap) -> torch.Tensor:
    return torch.frombuffer(memory, dtype=torch.uint8)
