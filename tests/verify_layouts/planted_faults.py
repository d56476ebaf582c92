"""Typical mistakes of parallel code. Each function plants one in the calling rank by replacing part of the product."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.model import decoder, loss
from megatron_dsmath.model.parameters import Parameter
from megatron_dsmath.parallel import attention, optimizer, pipeline, rotary, transformer
from megatron_dsmath.verify_layouts.compare import RankResult
from megatron_dsmath.verify_layouts.measure import measure_layout

# Names that these modules import; mypy does not let others assign to them.
_attention: Any = attention
_transformer: Any = transformer


def outputs_are_not_summed() -> None:
    """Each tensor-parallel rank uses its own part of the output projections' sums as the sum."""
    forward = _transformer.RowParallelLinear.forward
    module = sys.modules[_transformer.RowParallelLinear.__module__]

    def own_part(partial: torch.Tensor, **_: Any) -> torch.Tensor:
        return partial

    def own_positions(partial: torch.Tensor, group: Any, **_: Any) -> torch.Tensor:
        return partial.chunk(dist.get_world_size(group))[dist.get_rank(group)]

    def without_sum(self: Any, hidden: torch.Tensor) -> Any:
        with (
            patch.object(module, "reduce_from_tensor_model_parallel_region", own_part),
            patch.object(module, "reduce_scatter_to_sequence_parallel_region", own_positions),
        ):
            return forward(self, hidden)

    _transformer.RowParallelLinear.forward = without_sum


def gradients_of_inputs_are_not_summed() -> None:
    """In the backward pass each tensor-parallel rank uses the input gradient of its own columns as the sum."""
    build = _transformer.ColumnParallelLinear.__init__

    def without_sum(self: Any, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        self.allreduce_dgrad, self.disable_grad_reduce = False, True

    _transformer.ColumnParallelLinear.__init__ = without_sum


def norm_gradients_are_not_summed() -> None:
    """Under sequence parallelism each rank keeps the norm gradients of its own part of the sequence."""
    build = transformer.RMSNorm.__init__

    def without_mark(self: transformer.RMSNorm, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        self.weight.sequence_parallel = False  # type: ignore[attr-defined]

    transformer.RMSNorm.__init__ = without_mark  # type: ignore[method-assign]


def parts_of_matrices_count_as_copies() -> None:
    """The gradient norm omits the second tensor-parallel rank's parts of matrices."""
    transformer.mark_tensor_parallel = lambda tensor, dimension: None


def microbatches_are_averaged() -> None:
    """Mean of means: microbatches with few targets have the same weight as those with many."""
    sum_by_group = loss.sum_by_group

    def means(nats: torch.Tensor, batch: Any, groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        nats_sum, tokens, report = sum_by_group(nats, batch, groups)
        return nats_sum / tokens.clamp(min=1), torch.ones_like(tokens), report

    loss.sum_by_group = means


def ranks_are_averaged() -> None:
    """Mean of means: data-parallel ranks with few targets have the same weight as those with many."""
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
    """Data-parallel ranks update with their own gradients only."""
    optimizer.DataParallelChunk.finish_grad_sync = lambda self, *_, **__: None


def norms_decay() -> None:
    """Weight decay is applied to norms too."""
    apply_gradients = optimizer.apply_gradients

    def decay_everything(updater: optimizer.Optimizer, norm: float, learning_rate: float, weight_decay: float) -> None:
        for group in updater.param_groups:
            group["wd_mult"] = 1.0
        apply_gradients(updater, norm, learning_rate, weight_decay)

    optimizer.apply_gradients = decay_everything  # type: ignore[assignment]


def stages_load_the_first_layers() -> None:
    """Every stage loads the first layers of the model."""
    named_parameters = decoder.named_parameters

    def numbered_from_zero(model_chunks: Sequence[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Parameter]]:
        names: dict[str, str] = {}
        for name, tensor in named_parameters(model_chunks):
            if name.startswith("decoder.layers."):
                number = name.split(".")[2]
                name = name.replace(f".{number}.", f".{names.setdefault(number, str(len(names)))}.", 1)
            yield name, tensor

    decoder.named_parameters = numbered_from_zero


def middle_stages_miss_the_documents() -> None:
    """Stages between the first and the last attend across documents."""
    run_microbatches = pipeline.run_microbatches

    def without_bounds(model_chunks: Any, microbatches: Any, loss_of: Any, *, backward: bool) -> list[torch.Tensor]:
        decoders = [transformer.unwrap_decoder(chunk) for chunk in model_chunks]
        if not any(decoder.pre_process or decoder.post_process for decoder in decoders):
            microbatches = [batch._replace(document_bounds=None) for batch in microbatches]
        return run_microbatches(model_chunks, microbatches, loss_of, backward=backward)

    pipeline.run_microbatches = without_bounds


def keys_and_values_are_swapped() -> None:
    """The key and value rows of the fused attention matrix are swapped."""
    fuse, unfuse = Parameter.fuse, Parameter.unfuse

    def swap(parts: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return (parts[0], parts[2], parts[1]) if len(parts) == 3 else tuple(parts)

    def fuse_swapped(self: Parameter, tensors: Sequence[torch.Tensor], groups: int) -> torch.Tensor:
        return fuse(self, swap(tensors), groups)

    def unfuse_swapped(self: Parameter, tensor: torch.Tensor, groups: int) -> tuple[torch.Tensor, ...]:
        return swap(unfuse(self, tensor, groups))

    Parameter.fuse, Parameter.unfuse = fuse_swapped, unfuse_swapped  # type: ignore[method-assign]


def rotary_pairs_are_neighbours() -> None:
    """The rotary embedding pairs channels 2i and 2i + 1 (GPT-J), not i and i + channels / 2 (LLaMA)."""
    rotate = rotary.rotate

    def rotate_neighbours(states: torch.Tensor, *arguments: Any) -> torch.Tensor:
        halves = rotate(torch.cat([states[..., 0::2], states[..., 1::2]], -1), *arguments)
        return torch.stack(halves.chunk(2, -1), -1).flatten(-2)

    _attention.rotate = rotate_neighbours


@dataclass(frozen=True)
class Fault:
    """A mistake, the layouts in which it changes the result, and the diagnosis that is right for it."""

    plant: Callable[[], None]
    layouts: tuple[str, ...]
    kind: str
    first_parameter: str


FAULTS = {
    "sum-skipped": Fault(outputs_are_not_summed, ("tp2", "tp2sp"), "sum", "model.layers.0.self_attn.o_proj.weight"),
    "backward-sum-skipped": Fault(
        gradients_of_inputs_are_not_summed, ("tp2",), "backward", "model.embed_tokens.weight"
    ),
    "norm-sum-skipped": Fault(
        norm_gradients_are_not_summed, ("tp2sp",), "norm-gradients", "model.layers.0.input_layernorm.weight"
    ),
    "norm-of-parts": Fault(parts_of_matrices_count_as_copies, ("tp2",), "gradient-norm", "model.embed_tokens.weight"),
    "microbatch-mean": Fault(microbatches_are_averaged, ("one", "dp2"), "averaging", "model.embed_tokens.weight"),
    "rank-mean": Fault(ranks_are_averaged, ("dp2",), "averaging", "model.embed_tokens.weight"),
    "reduction-skipped": Fault(
        gradients_stay_on_their_rank, ("dp2", "dp2noopt"), "reduction", "model.embed_tokens.weight"
    ),
    "norms-decay": Fault(norms_decay, ("one",), "decay", "model.layers.0.input_layernorm.weight"),
    "layers-renumbered": Fault(  # layer 4 is the first of the second stage
        stages_load_the_first_layers, ("pp2",), "layers", "model.layers.4.input_layernorm.weight"
    ),
    "documents-missing": Fault(  # layer 2 is the first of the second of four stages
        middle_stages_miss_the_documents, ("pp4packed",), "documents", "model.layers.2.self_attn.q_proj.weight"
    ),
    "qkv-order": Fault(keys_and_values_are_swapped, ("tp2",), "qkv-order", "model.layers.0.self_attn.q_proj.weight"),
    "rotary-convention": Fault(
        rotary_pairs_are_neighbours, ("pp2",), "positions", "model.layers.0.self_attn.q_proj.weight"
    ),
}


def measure_with_fault(name: str, run: RunConfig, weights: Path) -> RankResult:
    """`measure_layout` in a rank with one fault. Partially applied to the name, it is handed to the ranks."""
    FAULTS[name].plant()
    return measure_layout(run, weights)
