"""What this rank adds to a checkpoint: its boxes of the whole tensors, by megatron-core's keys. Nothing is gathered.

megatron-core 0.16.1 has two ways to save the distributed optimizer: one gathers all of it on every data-parallel rank,
through seven copies; the other needs the same number of ranks and the same buckets to load. A rank's share is a range
of each parameter's values, hence a few boxes of the whole tensor, and the format takes boxes of any kind. So each rank
saves its own, under the keys of megatron-core's `fully_reshardable`, which loads them in any layout.
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
from megatron.core.optimizer import ChainedOptimizer
from megatron.core.optimizer.distrib_optimizer import DistributedOptimizer

from megatron_dsmath.parallel.optimizer import Optimizer
from megatron_dsmath.parallel.transformer import unwrap_decoder


class Box(NamedTuple):
    """A part of a tensor with straight sides."""

    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


def boxes(shape: tuple[int, ...], start: int, stop: int) -> Iterator[Box]:
    """The boxes that together hold the values `start` to `stop` - 1 of a tensor of `shape`, in order.

    Never more than 2n - 1 for n dimensions: whole rows, and before and after them what is of a row that was cut.
    """
    if start >= stop:
        return
    if len(shape) == 1:
        yield Box((start,), (stop - start,))
        return
    row = prod(shape[1:])
    first, last = -(-start // row), stop // row  # the whole rows
    if first > last:  # begins and ends within one row
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


# Moments and master weights are stored as whole tensors, so that tensor, pipeline and data parallel sizes may change;
# the default sharding type of 0.16.1 raises.
SHARDING = {"distrib_optim_sharding_type": "fully_reshardable", "distrib_optim_fully_reshardable_mem_efficient": False}


class Part(NamedTuple):
    """A box of the whole tensor `key` of `shape`; `values` is where they are now, not a copy."""

    key: str
    shape: tuple[int, ...]
    box: Box
    values: torch.Tensor


class StateParts(NamedTuple):
    """All that this rank saves."""

    tensors: list[Part]
    objects: dict[str, bytes]
    """What is no tensor, by key, in torch's format: megatron-core keeps a place for the state of its linear layers."""
    common: dict[str, Any]
    """The nested rest, small and the same on all ranks: the optimizer's groups and its step."""


def state_parts(model_chunks: Sequence[torch.nn.Module], optimizer: Optimizer) -> StateParts:
    """The parts of weights and optimizer state that this rank saves; of copies, one rank has the say."""
    weights = {f"piece{index}": _weights(chunk) for index, chunk in enumerate(model_chunks)}
    inner = _only(optimizer)
    parts: list[Part] = []
    if isinstance(inner, DistributedOptimizer):
        parts = list(_shards(inner, weights))
        kind = {"param_state": {}, "param_state_sharding_type": SHARDING["distrib_optim_sharding_type"]}
        state = {**weights, "optimizer": {**inner.state_dict(), **kind}}
    else:
        state = {**weights, "optimizer": inner.sharded_state_dict(weights, is_loading=False, metadata=SHARDING)}
    sharded, common = save_preprocess(state, validate_access_integrity=False)
    mine = [base for base in nested_values(sharded) if is_main_replica(base.replica_id)]
    parts += [_part(tensor, _whole(tensor), tensor.data) for tensor in mine if isinstance(tensor, ShardedTensor)]
    objects = {base.unique_key: _as_saved([base.data]) for base in mine if isinstance(base, ShardedObject)}
    return StateParts(parts, objects, common)


def _weights(chunk: torch.nn.Module) -> dict[str, Any]:
    return unwrap_decoder(chunk).sharded_state_dict(metadata=SHARDING)


def _only(optimizer: Optimizer) -> Optimizer:
    if not isinstance(optimizer, ChainedOptimizer):
        return optimizer
    (inner,) = optimizer.chained_optimizers
    return inner


def _shards(optimizer: DistributedOptimizer, weights: dict[str, Any]) -> Iterator[Part]:
    """Master weights and moments of the parameters' ranges that this rank updates."""
    entries, _ = extract_sharded_tensors_and_factories(weights)
    places = {id(entry.data): entry for entry in nested_values(entries)}
    buckets = [bucket for ranges in optimizer.gbuf_ranges for buckets in ranges.values() for bucket in buckets]
    for bucket in buckets:
        for parameter, ranges in bucket["param_map"].items():
            for name, values in optimizer._get_main_param_and_optimizer_states(parameter).items():
                if name != "step":  # which stands with the groups
                    prefix = f"optimizer.state.{name}."
                    yield from _cut(places[id(parameter)], prefix, values.detach(), ranges["param"].start)


def _cut(place: ShardedTensor | ShardedTensorFactory, prefix: str, values: torch.Tensor, start: int) -> Iterator[Part]:
    """Boxes of the flat `values`, which stand in the parameter from `start` on."""
    made = place.build() if isinstance(place, ShardedTensorFactory) else place  # gate and up, which lie together
    for tensor in nested_values(made) if isinstance(made, dict | list) else [made]:
        if not is_main_replica((*tensor.replica_id[:-1], 0)):  # the last is data parallel: each has its own share
            continue
        assert tensor.data.is_contiguous()
        first = (tensor.data.data_ptr() - place.data.data_ptr()) // place.data.element_size()
        begin, end = max(start, first), min(start + values.numel(), first + tensor.data.numel())
        renamed = replace(tensor, key=prefix + tensor.key, dtype=values.dtype, data=None)
        position = begin - start
        for box in boxes(tensor.local_shape, begin - first, end - first):
            length = prod(box.sizes)
            yield _part(renamed, box, values[position : position + length].view(box.sizes))
            position += length


def _whole(tensor: ShardedTensor) -> Box:
    return Box((0,) * len(tensor.local_shape), tuple(tensor.local_shape))


def _part(tensor: ShardedTensor, box: Box, values: torch.Tensor) -> Part:
    """A box of this rank's tensor as a box of the whole one, which may have a leading axis of layers."""
    stacked = tensor.prepend_axis_num
    inner = zip(tensor.global_offset[stacked:], box.offsets, strict=True)
    offsets = (*tensor.global_offset[:stacked], *(there + here for there, here in inner))
    sizes = (*(1 for _ in range(stacked)), *box.sizes)
    return Part(tensor.key, tuple(tensor.global_shape), Box(offsets, sizes), values.detach())


def _as_saved(value: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()
