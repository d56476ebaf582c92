"""What a rank hands to others, and gets from them, while a step is computed: as checksums, to compare two computations.

A rank computes what it hands on from what it has got before. So where two computations of a step differ, those ranks
erred whose first difference is one in what they hand on; the others have only got something else. That holds in every
layout, and nothing here knows of one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from megatron_dsmath.parallel.optimizer import DataParallelChunk

Label = tuple[str, int, int]  # what was done, the address of a gradient or 0, and the how-manieth time
_ONLY_RECEIVED = ("broadcast_", "recv_", "recv_any_source_", "scatter_")  # of what they name `tensors`
_ONLY_HANDED = ("send",)


class Result(NamedTuple):
    """Something that a computation left on this rank."""

    is_own: bool
    """Computed here; else it came from another rank, or may have."""
    checksum: tuple[int, int]


Results = Mapping[Label, Result]  # in the order in which they came


class ExchangeRecorder(TorchDispatchMode):
    """Within, every collective and every message of this rank is remembered; it sees each operation, and costs so."""

    def __init__(self, model_chunks: Sequence[DataParallelChunk]) -> None:
        super().__init__()
        weights = [weight for chunk in model_chunks for weight in chunk.parameters()]
        self._gradients = {_storage(weight.main_grad) for weight in weights}
        # Whether weights are still to be gathered when a step begins depends on what was before it.
        self._weights = {_storage(weight) for weight in weights}
        self._times: Counter[tuple[str, int]] = Counter()
        self._seen: dict[Label, tuple[bool, torch.Tensor]] = {}
        self._awaited: list[tuple[Label, torch.Tensor]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation; look at a received tensor when it is first used, since before it may not be there."""
        kwargs = kwargs or {}
        if self._awaited and not func.is_view:
            # gloo fills what it reduces and scatters with a copy of its own: that one only writes.
            read = args[1:] if func is torch.ops.aten.copy_.default else args
            self._look_at_what_is_used(tree_leaves((read, kwargs)))
        if func.namespace != "c10d":
            return func(*args, **kwargs)
        handed, received = _tensors(func, args)
        for tensor in handed:
            if _storage(tensor) not in self._weights:
                self._seen[self._label(func, "handed on", tensor)] = True, checksum([tensor])
        result = func(*args, **kwargs)
        self._awaited += [
            (self._label(func, "received", tensor), tensor)
            for tensor in received
            if _storage(tensor) not in self._weights
        ]
        return result

    def results(self) -> dict[Label, Result]:
        """All of it, once the computation is over."""
        for label, tensor in self._awaited:
            self._seen[label] = False, checksum([tensor])
        self._awaited.clear()
        return read(self._seen)

    def _label(self, func: Any, direction: str, tensor: torch.Tensor) -> Label:
        # When a bucket of gradients is handed on depends on the step: the first reduces all of them at its end.
        place = tensor.data_ptr() if _storage(tensor) in self._gradients else 0
        what = f"{func.overloadpacket.__name__.strip('_')} {direction}"
        self._times[what, place] += 1
        return what, place, self._times[what, place]

    def _look_at_what_is_used(self, values: list[Any]) -> None:
        used = [_span(value) for value in values if isinstance(value, torch.Tensor)]
        waiting = []
        for label, tensor in self._awaited:
            start, end = _span(tensor)
            if any(first < end and start < last for first, last in used):
                self._seen[label] = False, checksum([tensor])
            else:
                waiting.append((label, tensor))
        self._awaited = waiting


def first_difference(one: Results, other: Results) -> tuple[str, bool] | None:
    """What it is that differs first, as people name it, and whether it was computed here; None for equal results."""
    for label, result in one.items():
        if label not in other or other[label].checksum != result.checksum:
            return f"{label[0]}, number {label[2]}", result.is_own
    return None if one.keys() == other.keys() else ("more was exchanged", False)


def checksum(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Two int64 that any one wrong bit changes: the sum of the words, and the bits of the sum of the values.

    The words' sum alone overlooks two changed signs, the values' alone what is lost in rounding.
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
    """The same memory as int64, which is summed as fast as it is read, and what is left at its end as bytes."""
    in_words = 8 // flat.element_size()
    whole = flat.numel() // in_words * in_words
    aligned = flat if flat.storage_offset() % in_words == 0 else flat.clone()
    yield aligned[:whole].view(torch.int64)
    yield aligned[whole:].view(torch.uint8)


def read(seen: Mapping[Label, tuple[bool, torch.Tensor]]) -> dict[Label, Result]:
    """Checksums as numbers, all fetched from the device at once."""
    if not seen:
        return {}
    numbers = torch.stack([checksum.cpu() for _, checksum in seen.values()]).tolist()
    return {
        label: Result(is_own, (words, values))
        for (label, (is_own, _)), (words, values) in zip(seen.items(), numbers, strict=True)
    }


def _tensors(func: Any, args: tuple[Any, ...]) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """What a collective or a message hands on, and what it receives, by the names that c10d gives its arguments."""
    handed: list[torch.Tensor] = []
    received: list[torch.Tensor] = []
    name = func.overloadpacket.__name__
    for argument, value in zip(func._schema.arguments, args, strict=False):
        tensors = [leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor)]
        if argument.name.startswith("input") or (argument.name == "tensors" and name not in _ONLY_RECEIVED):
            handed += tensors
        if argument.name.startswith("output") or (argument.name == "tensors" and name not in _ONLY_HANDED):
            received += tensors
    return handed, received


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """The addresses between which it lies, holes included."""
    if not tensor.numel():
        return 0, 0
    last = sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + (last + 1) * tensor.element_size()
