"""Checksums of the tensors that a rank sends and receives in a step, to compare two computations of the step.

A rank computes what it sends from what it received before. If two computations of a step differ, the ranks whose first
difference is in a sent tensor made the error; the others only received different values. This holds in every layout.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_dsmath.parallel.optimizer import DataParallelChunk

Label = tuple[str, int, int]  # operation and direction, address of a gradient or 0, number of the occurrence from 1
# Operations whose argument `tensors` is only received, or only sent; for others it is both.
_ONLY_RECEIVED = ("broadcast_", "recv_", "recv_any_source_", "scatter_")
_ONLY_SENT = ("send",)


class Exchange(NamedTuple):
    """A tensor that this rank sent, received or computed in a step."""

    is_own: bool  # whether this rank computed it; otherwise it came, or may have come, from another rank
    checksum: tuple[int, int]


Exchanges = Mapping[Label, Exchange]  # in order of time


class ExchangeRecorder(TorchDispatchMode):
    """A context that records every collective and message of this rank. It intercepts, and so slows, each operation."""

    def __init__(self, model_chunks: Sequence[DataParallelChunk]) -> None:
        super().__init__()
        weights = [weight for chunk in model_chunks for weight in chunk.parameters()]
        self._gradients = {_storage(weight.main_grad) for weight in weights}
        # Weights are not recorded: whether a step begins by gathering them depends on what happened before it.
        self._weights = {_storage(weight) for weight in weights}
        self._counts: Counter[tuple[str, int]] = Counter()
        self._recorded: dict[Label, tuple[bool, torch.Tensor]] = {}
        self._pending: list[tuple[Label, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and record it; a received tensor is read at its first use, since it may arrive later."""
        kwargs = kwargs or {}
        if self._pending and not func.is_view:
            # gloo fills the result of a reduce-scatter with copy_, which only writes its first argument.
            inputs = args[1:] if func is torch.ops.aten.copy_.default else args
            self._record_used(tree_leaves((inputs, kwargs)))
        if func.namespace != "c10d":
            return func(*args, **kwargs)
        sent, received = (
            [tensor for tensor in tensors if _storage(tensor) not in self._weights] for tensors in _tensors(func, args)
        )
        for tensor in sent:
            self._recorded[self._label(func, "sent", tensor)] = True, checksum([tensor])
        result = func(*args, **kwargs)
        self._pending += [(self._label(func, "received", tensor), tensor) for tensor in received]
        return result

    def exchanges(self) -> dict[Label, Exchange]:
        """All recorded exchanges, after the computation has ended."""
        for label, tensor in self._pending:
            self._recorded[label] = False, checksum([tensor])
        self._pending.clear()
        return read_checksums(self._recorded)

    def _label(self, func: Any, direction: str, tensor: torch.Tensor) -> Label:
        # Gradients are identified by address, since their order depends on the step: the first reduces all at its end.
        address = tensor.data_ptr() if _storage(tensor) in self._gradients else 0
        name = f"{func.overloadpacket.__name__.strip('_')} {direction}"
        self._counts[name, address] += 1
        return name, address, self._counts[name, address]

    def _record_used(self, values: list[Any]) -> None:
        used = [_span(value) for value in values if isinstance(value, torch.Tensor)]
        pending = []
        for label, tensor in self._pending:
            start, end = _span(tensor)
            if any(first < end and start < last for first, last in used):
                self._recorded[label] = False, checksum([tensor])
            else:
                pending.append((label, tensor))
        self._pending = pending


def first_difference(one: Exchanges, other: Exchanges) -> tuple[str, bool] | None:
    """A description of the first difference and whether this rank computed it; None if the exchanges are equal."""
    for label, exchange in one.items():
        if label not in other or other[label].checksum != exchange.checksum:
            return f"{label[0]}, number {label[2]}", exchange.is_own
    return None if one.keys() == other.keys() else ("more was exchanged", False)


def checksum(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Two int64 that change with any single bit: the sum of the 64-bit words, and the bits of the sum of the values.

    The sum of words alone misses two changed signs; the sum of values alone misses what rounding removes.
    """
    words = torch.zeros((), dtype=torch.int64)
    values = torch.zeros((), dtype=torch.float64)
    for tensor in tensors:
        flat = tensor.detach().contiguous().view(-1)
        words, values = words.to(flat.device), values.to(flat.device)
        for part in _words(flat):
            words = words + part.sum()
        values = values + flat.sum()
    return torch.stack([words, values.view(torch.int64)])


def _words(flat: torch.Tensor) -> Iterator[torch.Tensor]:
    """The same memory as int64, whose sum is as fast as reading it, and the remainder as bytes."""
    per_word = 8 // flat.element_size()
    end = flat.numel() // per_word * per_word
    aligned = flat if flat.storage_offset() % per_word == 0 else flat.clone()
    yield aligned[:end].view(torch.int64)
    yield aligned[end:].view(torch.uint8)


def read_checksums(recorded: Mapping[Label, tuple[bool, torch.Tensor]]) -> dict[Label, Exchange]:
    """Copy checksums from the device, all at once."""
    if not recorded:
        return {}
    numbers = torch.stack([checksum.cpu() for _, checksum in recorded.values()]).tolist()
    return {
        label: Exchange(is_own, (words, values))
        for (label, (is_own, _)), (words, values) in zip(recorded.items(), numbers, strict=True)
    }


def _tensors(func: Any, args: tuple[Any, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The tensors that a collective or message sends and receives, by the names of its c10d arguments."""
    sent: list[torch.Tensor] = []
    received: list[torch.Tensor] = []
    name = func.overloadpacket.__name__
    for argument, value in zip(func._schema.arguments, args, strict=False):
        tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        if argument.name.startswith("input") or (argument.name == "tensors" and name not in _ONLY_RECEIVED):
            sent += tensors
        if argument.name.startswith("output") or (argument.name == "tensors" and name not in _ONLY_SENT):
            received += tensors
    return sent, received


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The first and last address of a tensor's memory, gaps included."""
    if not tensor.numel():
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
