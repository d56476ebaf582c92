"""Mistakes that parallel code is prone to, planted in a rank on purpose: a comparison that misses one is none."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from megatron_dsmath.model import decoder, loss
from megatron_dsmath.model.parameters import Parameter
from megatron_dsmath.parallel import attention, optimizer, pipeline, rotary, transformer

FAULT_LAYOUTS = {
    "sum-skipped": ("tp2", "tp2sp"),
    "backward-sum-skipped": ("tp2",),
    "norm-sum-skipped": ("tp2sp",),
    "norm-of-parts": ("tp2",),
    "microbatch-mean": ("one", "dp2"),
    "rank-mean": ("dp2",),
    "reduction-skipped": ("dp2", "dp2noopt"),
    "norms-decay": ("one",),
    "layers-renumbered": ("pp2",),
    "documents-missing": ("pp4packed",),
    "qkv-order": ("tp2",),
    "rotary-convention": ("pp2",),
}


_attention: Any = attention  # what is replaced in these is imported there, and no name of theirs
_transformer: Any = transformer


def outputs_are_not_summed() -> None:
    """Each tensor-parallel rank goes on with its own part of the output projections' sums."""
    forward = _transformer.RowParallelLinear.forward
    module = sys.modules[_transformer.RowParallelLinear.__module__]

    def own_part(partial: torch.Tensor, **_: Any) -> torch.Tensor:
        return partial

    def own_positions(partial: torch.Tensor, group: Any, **_: Any) -> torch.Tensor:
        return partial.chunk(dist.get_world_size(group))[dist.get_rank(group)]

    def without_the_sum(self: Any, hidden: torch.Tensor) -> Any:
        with (
            patch.object(module, "reduce_from_tensor_model_parallel_region", own_part),
            patch.object(module, "reduce_scatter_to_sequence_parallel_region", own_positions),
        ):
            return forward(self, hidden)

    _transformer.RowParallelLinear.forward = without_the_sum


def gradients_of_inputs_are_not_summed() -> None:
    """In the backward pass each tensor-parallel rank hands on what its own columns say."""
    build = _transformer.ColumnParallelLinear.__init__

    def without_the_sum(self: Any, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        self.allreduce_dgrad, self.disable_grad_reduce = False, True

    _transformer.ColumnParallelLinear.__init__ = without_the_sum


def norm_gradients_are_not_summed() -> None:
    """Under sequence parallelism each rank sees a part of the sequence, and keeps its own gradient of a norm."""
    build = transformer.RMSNorm.__init__

    def without_the_mark(self: transformer.RMSNorm, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        self.weight.sequence_parallel = False  # type: ignore[attr-defined]

    transformer.RMSNorm.__init__ = without_the_mark  # type: ignore[method-assign]


def parts_of_matrices_count_as_copies() -> None:
    """The gradient norm leaves out what the second tensor-parallel rank holds."""
    transformer.mark_tensor_parallel = lambda tensor, dimension: None


def each_microbatch_is_averaged() -> None:
    """Means of means: microbatches with few targets weigh as much as those with many."""
    sum_by_group = loss.sum_by_group

    def means(nats: torch.Tensor, batch: Any, groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        nats_sum, tokens, report = sum_by_group(nats, batch, groups)
        return nats_sum / tokens.clamp(min=1), torch.ones_like(tokens), report

    loss.sum_by_group = means


def each_rank_is_averaged() -> None:
    """Means of means: data-parallel ranks with few targets weigh as much as those with many."""
    run_microbatches = pipeline.run_microbatches

    def averaged(model_chunks: Any, microbatches: Any, loss_of: Any, *, backward: bool) -> list[torch.Tensor]:
        own = torch.stack([batch.loss_mask.sum() for batch in microbatches]).sum()
        all_ranks = own.clone()
        dist.all_reduce(all_ranks)
        weight = all_ranks / (own * dist.get_world_size())

        def weighted(nats: torch.Tensor, batch: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            nats_sum, tokens, report = loss_of(nats, batch)
            return nats_sum * weight, tokens, report

        return run_microbatches(model_chunks, microbatches, weighted, backward=backward)

    pipeline.run_microbatches = averaged


def gradients_stay_on_their_rank() -> None:
    """Data-parallel ranks step with what they computed themselves."""
    optimizer.DataParallelChunk.finish_grad_sync = lambda self, *_, **__: None


def norms_decay_too() -> None:
    """Weight decay reaches every parameter."""
    apply_gradients = optimizer.apply_gradients

    def everything_decays(updater: optimizer.Optimizer, norm: float, learning_rate: float, weight_decay: float) -> None:
        for group in updater.param_groups:
            group["wd_mult"] = 1.0
        apply_gradients(updater, norm, learning_rate, weight_decay)

    optimizer.apply_gradients = everything_decays  # type: ignore[assignment]


def stages_begin_at_layer_zero() -> None:
    """Every stage takes its layers to be the first ones of the model."""
    named_parameters = decoder.named_parameters

    def numbered_anew(model_chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Parameter]]:
        names: dict[str, str] = {}
        for name, tensor in named_parameters(model_chunks):
            if name.startswith("decoder.layers."):
                number = name.split(".")[2]
                name = name.replace(f".{number}.", f".{names.setdefault(number, str(len(names)))}.", 1)
            yield name, tensor

    decoder.named_parameters = numbered_anew


def middle_stages_miss_the_documents() -> None:
    """Stages between the first and the last attend over the whole sequence."""
    run_microbatches = pipeline.run_microbatches

    def without_bounds(model_chunks: Any, microbatches: Any, loss_of: Any, *, backward: bool) -> list[torch.Tensor]:
        decoders = [transformer.unwrap_decoder(chunk) for chunk in model_chunks]
        if not any(decoder.pre_process or decoder.post_process for decoder in decoders):
            microbatches = [batch._replace(document_bounds=None) for batch in microbatches]
        return run_microbatches(model_chunks, microbatches, loss_of, backward=backward)

    pipeline.run_microbatches = without_bounds


def keys_and_values_are_swapped() -> None:
    """Rows of the fused attention matrix stand in another order than the attention reads them."""
    fuse, unfuse = Parameter.fuse, Parameter.unfuse

    def swapped(parts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (parts[0], parts[2], parts[1]) if len(parts) == 3 else tuple(parts)

    def fuse_swapped(self: Parameter, tensors: Sequence[torch.Tensor], groups: int) -> torch.Tensor:
        return fuse(self, swapped(tensors), groups)

    def unfuse_swapped(self: Parameter, tensor: torch.Tensor, groups: int) -> tuple[torch.Tensor, ...]:
        return swapped(unfuse(self, tensor, groups))

    Parameter.fuse, Parameter.unfuse = fuse_swapped, unfuse_swapped  # type: ignore[method-assign]


def rotary_pairs_are_neighbours() -> None:
    """Channel 2i turns with channel 2i + 1 (GPT-J), not channel i with i + channels / 2 (LLaMA)."""
    rotate = rotary.rotate

    def of_neighbours(states: torch.Tensor, *arguments: Any) -> torch.Tensor:
        halves = rotate(torch.cat([states[..., 0::2], states[..., 1::2]], -1), *arguments)
        return torch.stack(halves.chunk(2, -1), -1).flatten(-2)

    _attention.rotate = of_neighbours


FAULTS: dict[str, Callable[[], None]] = {
    "sum-skipped": outputs_are_not_summed,
    "backward-sum-skipped": gradients_of_inputs_are_not_summed,
    "norm-sum-skipped": norm_gradients_are_not_summed,
    "norm-of-parts": parts_of_matrices_count_as_copies,
    "microbatch-mean": each_microbatch_is_averaged,
    "rank-mean": each_rank_is_averaged,
    "reduction-skipped": gradients_stay_on_their_rank,
    "norms-decay": norms_decay_too,
    "layers-renumbered": stages_begin_at_layer_zero,
    "documents-missing": middle_stages_miss_the_documents,
    "qkv-order": keys_and_values_are_swapped,
    "rotary-convention": rotary_pairs_are_neighbours,
}
