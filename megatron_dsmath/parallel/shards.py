"""A training state in megatron-core's sharded format: each rank writes its part, any layout reads it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.state_dict_saver import save as save_tensors

from megatron_dsmath.parallel.optimizer import Optimizer
from megatron_dsmath.parallel.shard_metadata import check_metadata
from megatron_dsmath.parallel.transformer import unwrapped

# Moments and master weights are stored as whole tensors, so that tensor, pipeline and data parallel sizes may change;
# the default sharding type of 0.16.1 raises.
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable", "distrib_optim_fully_reshardable_mem_efficient": False}


class _SavedByThisProcess(TorchDistSaveShardedStrategy):
    """The same files, written by the rank itself.

    megatron-core's own strategy starts a manager process that imports the main script anew, and hangs where psutil or
    a `__main__` guard is missing.
    """

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)

    def save(self, sharded_state_dict: Any, checkpoint_dir: Path) -> None:
        tensors, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
        save_tensors(
            mcore_to_pyt_state_dict(tensors, False),
            storage_writer=FileSystemWriter(checkpoint_dir, sync_files=True),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )


def save(folder: Path, pieces: Sequence[torch.nn.Module], optimizer: Optimizer) -> None:
    """Write weights and optimizer state into the existing, empty `folder`; every rank calls it."""
    dist_checkpointing.save(_state(pieces, optimizer, is_loading=False), str(folder), _SavedByThisProcess())


def load(folder: Path, pieces: Sequence[torch.nn.Module], optimizer: Optimizer) -> None:
    """Read weights and optimizer state of any layout into this rank's; every rank calls it. Raises CheckpointError.

    Moments, master weights and the step count come from the checkpoint, the optimizer's numbers from the run.
    """
    check_metadata(folder)
    numbers = {key: optimizer.param_groups[0][key] for key in ("betas", "eps")}
    state = dist_checkpointing.load(_state(pieces, optimizer, is_loading=True), str(folder))
    for index, piece in enumerate(pieces):
        unwrapped(piece).load_state_dict(state[f"piece{index}"])
    optimizer.load_state_dict(state["optimizer"])
    for group in optimizer.param_groups:
        group.update(numbers)


def _state(pieces: Sequence[torch.nn.Module], optimizer: Optimizer, is_loading: bool) -> dict[str, Any]:
    weights = {
        f"piece{index}": unwrapped(piece).sharded_state_dict(metadata=_METADATA) for index, piece in enumerate(pieces)
    }
    # While loading, this also creates the moments: they say what is to be read.
    return {**weights, "optimizer": optimizer.sharded_state_dict(weights, is_loading=is_loading, metadata=_METADATA)}
