"""Mistakes that parallel code is prone to, planted in a rank on purpose: a comparison that misses one is none."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel

from megatron_dsmath.config.run import RunConfig
from megatron_dsmath.model import decoder, loss
from megatron_dsmath.parallel import norm, optimizer, transformer
from tests.support import training
from tests.support.training import Figures


def train_with(fault: Callable[[], None], run: RunConfig, weights: Path, steps: int) -> list[Figures]:
    """`training.train` with one mistake in the product."""
    fault()
    return training.train(run, weights, steps)


def norm_gradients_are_not_summed() -> None:
    """Under sequence parallelism each rank sees a part of the sequence, and keeps its own gradient of a norm."""
    build = norm.RMSNorm.__init__

    def without_the_mark(self: norm.RMSNorm, *arguments: Any, **named: Any) -> None:
        build(self, *arguments, **named)
        self.weight.sequence_parallel = False  # type: ignore[attr-defined]

    norm.RMSNorm.__init__ = without_the_mark  # type: ignore[method-assign]


def parts_of_matrices_count_as_copies() -> None:
    """The gradient norm leaves out what the second tensor-parallel rank holds."""
    transformer.mark_as_shared = lambda tensor, dimension: None


def each_microbatch_is_averaged() -> None:
    """Means of means: microbatches and ranks with few targets weigh as much as those with many."""
    sums_by_corpus = loss.sums_by_corpus

    def means(nats: torch.Tensor, batch: Any, corpora: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        nats_sum, tokens, report = sums_by_corpus(nats, batch, corpora)
        return nats_sum / tokens.clamp(min=1), torch.ones_like(tokens), report

    loss.sums_by_corpus = means


def gradients_stay_on_their_rank() -> None:
    """Data-parallel ranks step with what they computed themselves."""
    DistributedDataParallel.finish_grad_sync = lambda self, *_, **__: None


def norms_decay_too() -> None:
    """Weight decay reaches every parameter."""
    update = optimizer.update

    def everything_decays(updater: optimizer.Optimizer, learning_rate: float, weight_decay: float) -> float:
        for group in updater.param_groups:
            group["wd_mult"] = 1.0
        return update(updater, learning_rate, weight_decay)

    optimizer.update = everything_decays


def stages_begin_at_layer_zero() -> None:
    """Every stage takes its layers to be the first ones of the model."""
    named_parameters = decoder.named_parameters

    def numbered_anew(pieces: Sequence[torch.nn.Module]) -> Iterator[tuple[str, torch.nn.Parameter]]:
        names: dict[str, str] = {}
        for name, tensor in named_parameters(pieces):
            if name.startswith("decoder.layers."):
                number = name.split(".")[2]
                name = name.replace(f".{number}.", f".{names.setdefault(number, str(len(names)))}.", 1)
            yield name, tensor

    decoder.named_parameters = numbered_anew
