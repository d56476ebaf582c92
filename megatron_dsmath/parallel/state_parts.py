"""The parts of the training state that this rank saves: boxes of the whole tensors under megatron-core's keys.

megatron-core 0.16.1 can save the distributed optimizer in two ways: one gathers all of it on every data-parallel rank,
with seven copies; the other can only be loaded with the same number of ranks and the same buckets. A rank's shard is a
range of each parameter's values, and therefore a few boxes of the whole tensor, which the format can store. So each
rank saves its own boxes, without communication, under the keys of megatron-core's `fully_reshardable` format, which
any layout can load.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import prod
from typing import Any, NamedTuple

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor, ShardedTensorFactory, is_main_replica
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.utils import extract_sharded_tensors_and_factories
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_dsmath.parallel.optimizer import Optimizer
from megatron_dsmath.parallel.transformer import unwrap_decoder

# Moments and master weights are stored as whole tensors, so that tensor, pipeline and data parallel sizes may change;
# the default sharding type of 0.16.1 raises.
SHARDING = {"distrib_optim_sharding_type": "fully_reshardable", "distrib_optim_fully_reshardable_mem_efficient": False}


class Box(NamedTuple):
    """A rectangular part of a tensor."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


class Part(NamedTuple):
    """A box of the whole tensor `key` of `shape`; `values` is a view, not a copy."""

    key: str
    shape: tuple[int, ...]
    box: Box
    values: torch.Tensor


class StateParts(NamedTuple):
    """Everything that this rank saves."""

    tensors: list[Part]
    # Objects that are not tensors, by key, in torch's format: megatron-core saves an extra state of linear layers.
    objects: dict[str, bytes]
    common: dict[str, Any]  # the nested rest, small and equal on all ranks: the optimizer's groups and its step


def state_parts(model_chunks: Sequence[torch.nn.Module], optimizer: Optimizer) -> StateParts:
    """The parts of weights and optimizer state that this rank saves; of replicas, one rank saves its copy."""
    weights = sharded_weights(model_chunks)
    (inner,) = optimizer.chained_optimizers
    parts: list[Part] = []
    if isinstance(inner, DistributedOptimizer):
        parts = list(_optimizer_parts(inner, weights))
        extra = {"param_state": {}, "param_state_sharding_type": SHARDING["distrib_optim_sharding_type"]}
        state = {**weights, "optimizer": {**inner.state_dict(), **extra}}
    else:
        state = {**weights, "optimizer": inner.sharded_state_dict(weights, is_loading=False, metadata=SHARDING)}
    sharded, common = save_preprocess(state, validate_access_integrity=False)
    own = [base for base in nested_values(sharded) if is_main_replica(base.replica_id)]
    for tensor in own:
        if isinstance(tensor, ShardedTensor):
            full = Box((0,) * len(tensor.local_shape), tuple(tensor.local_shape))
            parts.append(_part(tensor, full, tensor.data))
    objects = {base.unique_key: _serialize([base.data]) for base in own if isinstance(base, ShardedObject)}
    return StateParts(parts, objects, common)


def sharded_weights(model_chunks: Sequence[torch.nn.Module]) -> dict[str, Any]:
    """megatron-core's description of this rank's weights, by model chunk."""
    decoders = map(unwrap_decoder, model_chunks)
    return {f"piece{index}": decoder.sharded_state_dict(metadata=SHARDING) for index, decoder in enumerate(decoders)}


def _optimizer_parts(optimizer: DistributedOptimizer, weights: dict[str, Any]) -> Iterator[Part]:
    """Master weights and moments of the ranges of parameters that this rank updates."""
    entries, _ = extract_sharded_tensors_and_factories(weights)
    sharded = {id(entry.data): entry for entry in nested_values(entries)}
    buckets = [bucket for ranges in optimizer.gbuf_ranges for buckets in ranges.values() for bucket in buckets]
    for bucket in buckets:
        for parameter, ranges in bucket["param_map"].items():
            for name, values in optimizer._get_main_param_and_optimizer_states(parameter).items():
                if name != "step":  # saved with the parameter groups
                    prefix = f"optimizer.state.{name}."
                    yield from _split_range(sharded[id(parameter)], prefix, values.detach(), ranges["param"].start)


def _split_range(
    entry: ShardedTensor | ShardedTensorFactory, prefix: str, values: torch.Tensor, start: int
) -> Iterator[Part]:
    """Boxes of the flat `values`, which begin at index `start` of the parameter."""
    made = entry.build() if isinstance(entry, ShardedTensorFactory) else entry  # gate and up, fused
    for tensor in nested_values(made) if isinstance(made, dict | list) else [made]:
        if not is_main_replica((*tensor.replica_id[:-1], 0)):  # the last is the data-parallel rank
            continue
        assert tensor.data.is_contiguous()
        first = (tensor.data.data_ptr() - entry.data.data_ptr()) // entry.data.element_size()
        begin, end = max(start, first), min(start + values.numel(), first + tensor.data.numel())
        renamed = replace(tensor, key=prefix + tensor.key, dtype=values.dtype, data=None)
        position = begin - start
        for box in boxes(tensor.local_shape, begin - first, end - first):
            length = prod(box.sizes)
            yield _part(renamed, box, values[position : position + length].view(box.sizes))
            position += length


def _part(tensor: ShardedTensor, box: Box, values: torch.Tensor) -> Part:
    """Convert a box of this rank's tensor to one of the whole tensor, which may have a leading axis of layers."""
    stacked = tensor.prepend_axis_num
    inner = zip(tensor.global_offset[stacked:], box.offsets, strict=True)
    offsets = (*tensor.global_offset[:stacked], *(base + offset for base, offset in inner))
    sizes = (*(1 for _ in range(stacked)), *box.sizes)
    return Part(tensor.key, tuple(tensor.global_shape), Box(offsets, sizes), values.detach())


def _serialize(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """The boxes that together hold the values `start` to `stop` - 1 of a tensor of `shape`, in order.

    At most 2n - 1 for n dimensions: the complete rows, and the partial rows before and after them.
    """
    if start >= stop:
        return
    if len(shape) == 1:
        yield Box((start,), (stop - start,))
        return
    row = prod(shape[1:])
    first, last = -(-start // row), stop // row  # complete rows: first to last - 1
    if first > last:  # within one row
        yield from _in_row(shape, last, start, stop)
        return
    yield from _in_row(shape, first - 1, start, first * row)
    if first < last:
        yield Box((first, *(0 for _ in shape[1:])), (last - first, *shape[1:]))
    yield from _in_row(shape, last, last * row, stop)


def _in_row(shape: tuple[int, ...], index: int, start: int, stop: int) -> Iterator[Box]:
    first = index * prod(shape[1:])
    for box in boxes(shape[1:], start - first, stop - first):
        yield Box((index, *box.offsets), (1, *box.sizes))
