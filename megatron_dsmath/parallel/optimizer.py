"""Reduce, clip and apply gradients with megatron-core, and an AdamW whose state it can save and load."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias, cast

import torch
import torch.distributed as dist
from megatron.core import optimizer as megatron_optimizer
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig, finalize_model_grads
from megatron.core.optimizer import MegatronOptimizer, OptimizerConfig, clip_grads, distrib_optimizer
from torch.optim.adamw import adamw

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.parallel.transformer import DTYPES, Decoder

DataParallelChunk: TypeAlias = DistributedDataParallel  # a model chunk with its gradient buffers
Optimizer: TypeAlias = MegatronOptimizer


def wrap_data_parallel(run: RunConfig, model_chunks: list[Decoder], data_size: int) -> list[DataParallelChunk]:
    """Wrap this rank's model chunks so that their fp32 gradients are summed over the data-parallel ranks."""
    parallel = run.parallel
    settings = DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        use_distributed_optimizer=parallel.distributed_optimizer,
        overlap_grad_reduce=parallel.overlap_communication,
        overlap_param_gather=parallel.overlap_communication,
        average_in_collective=False,
    )
    reduced = [
        DistributedDataParallel(config=chunk.config, ddp_config=settings, module=chunk, disable_bucketing=index > 0)
        for index, chunk in enumerate(model_chunks)
    ]
    if data_size == 1 and not parallel.overlap_communication:
        for group in (group for chunk in reduced for group in chunk.bucket_groups):
            # With one rank megatron-core would copy every gradient and every parameter onto itself.
            group.start_grad_sync = group.start_param_sync = lambda *_, **__: None
    return reduced


def build(run: RunConfig, model_chunks: list[DataParallelChunk]) -> Optimizer:
    """Build the optimizer of this rank's model chunks: fp32 master weights and moments, no decay of norm weights.

    Also sets the functions by which the pipeline schedule reduces gradients.
    """
    settings = OptimizerConfig(
        optimizer="adam",
        lr=run.schedule.peak_learning_rate,
        min_lr=0.0,
        weight_decay=run.optimizer.weight_decay,
        adam_beta1=run.optimizer.beta1,
        adam_beta2=run.optimizer.beta2,
        adam_eps=run.optimizer.epsilon,
        clip_grad=run.optimizer.gradient_clip,
        bf16=run.precision == "bf16",
        params_dtype=DTYPES[run.precision],
        use_distributed_optimizer=run.parallel.distributed_optimizer,
        overlap_param_gather=run.parallel.overlap_communication,
    )
    _replace_megatron_adam()
    with_gloo = torch.cuda.is_available()
    optimizer = megatron_optimizer.get_megatron_optimizer(settings, model_chunks, use_gloo_process_groups=with_gloo)
    config = model_chunks[0].config
    config.grad_scale_func = optimizer.scale_loss
    config.finalize_model_grads_func = finalize_model_grads
    config.no_sync_func = _one_or_all([chunk.no_sync for chunk in model_chunks])
    if run.parallel.overlap_communication:
        config.grad_sync_func = _one_or_all([chunk.start_grad_sync for chunk in model_chunks])
        config.param_sync_func = _one_or_all([chunk.start_param_sync for chunk in model_chunks])
    return optimizer


def gradient_norm(optimizer: Optimizer) -> float:
    """The norm of all gradients before clipping; parameters are unchanged.

    With the distributed optimizer it is the same on every rank; without it, on the ranks of one model replica.
    """
    optimizer.prepare_grads()
    return float(optimizer.get_grad_norm())


def apply_gradients(optimizer: Optimizer, norm: float, learning_rate: float, weight_decay: float) -> None:
    """Clip the gradients to their norm `norm` and update the parameters: the second half of megatron-core's `step`."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
        # megatron-core gives norms a multiplier of 0; its own scheduler, which we do not use, would apply it.
        group["weight_decay"] = weight_decay * group["wd_mult"]
    for part in optimizer.chained_optimizers:
        if part.config.clip_grad > 0 and not part.is_stub_optimizer:
            clip_grads.clip_grad_by_total_norm_fp32(part.get_parameters(), part.config.clip_grad, norm)
    optimizer.step_with_ready_grads()


def weights_are_finite(optimizer: Optimizer) -> bool:
    """Whether all weights that this rank updates are finite; with the distributed optimizer, those of its shard."""
    # A sum propagates NaN and infinity at the speed of the memory; isfinite on each value takes ten times as long.
    sums = [parameter.detach().sum() for parameter in optimizer.get_parameters()]
    return not sums or bool(torch.stack(sums).isfinite().all())


def gather_gradients(model_chunks: Sequence[DataParallelChunk]) -> None:
    """After a backward pass, gather the other data-parallel ranks' shards of each parameter's `main_grad`."""
    for group in (group for chunk in model_chunks for group in chunk.bucket_groups):
        if not group.ddp_config.use_distributed_optimizer:
            continue
        ranks = group.intra_distributed_optimizer_instance_group
        for bucket in group.buckets:
            shards = bucket.grad_data.chunk(dist.get_world_size(ranks))
            own = shards[dist.get_rank(ranks)].clone()
            dist.all_gather(list(shards), own, group=ranks)


@contextmanager
def gathered_parameters(model_chunks: Sequence[DataParallelChunk]) -> Iterator[None]:
    """A context in which all parameters are gathered; overlapped gathers otherwise wait for the next forward pass."""
    overlapped = [chunk for chunk in model_chunks if chunk.ddp_config.overlap_param_gather]
    for chunk in overlapped:
        chunk.disable_forward_pre_hook(param_sync=True)
    try:
        yield
    finally:
        for chunk in overlapped:
            chunk.enable_forward_pre_hook()


class AdamW(torch.optim.AdamW):
    """AdamW with torch's fused kernel and apex's state: `step` is in the parameter group, not in each parameter.

    megatron-core's sharded checkpoints need it there; loading torch's own AdamW fails with `KeyError: 'step'`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        weight_decay: float,
        betas: tuple[float, float],
        eps: float,
        adam_w_mode: bool,
    ) -> None:
        assert adam_w_mode, "only decoupled weight decay is implemented"
        super().__init__(params, lr=lr, weight_decay=weight_decay, betas=betas, eps=eps, fused=True)
        for group in self.param_groups:
            group["step"] = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch's AdamW expects `step` in each parameter's state.
        torch.optim.Optimizer.__setstate__(self, state)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Apply one update to every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            group["step"] += 1
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if not parameters:
                continue
            states = [self.state[parameter] for parameter in parameters]
            for parameter, state in zip(parameters, states, strict=True):
                if not state:
                    state |= {"exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
            # The kernel increments the step itself, in tensors on the parameters' device.
            steps = [torch.full((), float(group["step"] - 1), device=parameter.device) for parameter in parameters]
            adamw(
                parameters,
                [cast(torch.Tensor, parameter.grad) for parameter in parameters],
                [state["exp_avg"] for state in states],
                [state["exp_avg_sq"] for state in states],
                [],
                steps,
                fused=True,
                amsgrad=False,
                beta1=group["betas"][0],
                beta2=group["betas"][1],
                lr=group["lr"],
                weight_decay=group["weight_decay"],
                eps=group["eps"],
                maximize=False,
            )


def _one_or_all(functions: list[Any]) -> Any:
    """One function for one model chunk, a list for several, as megatron-core expects."""
    return functions[0] if len(functions) == 1 else functions


def _replace_megatron_adam() -> None:
    """Make megatron-core use `AdamW` for torch's; if TransformerEngine or apex is installed, its optimizer is kept."""
    if megatron_optimizer.USING_PYTORCH_OPTIMIZER:
        megatron_optimizer.Adam, megatron_optimizer.USING_PYTORCH_OPTIMIZER = AdamW, False
        distrib_optimizer.Adam, distrib_optimizer.HAVE_APEX_OR_TE = AdamW, True
        distrib_optimizer.USING_APEX_OPTIMIZER = True
        clip_grads.multi_tensor_scale_impl = _scale_in_place


def _scale_in_place(_chunk: int, _overflow: object, tensors: list[list[torch.Tensor]], scale: float) -> None:
    """Multiply lists of tensors in place, for clipping; megatron-core's own fallback allocates new tensors."""
    sources, targets = tensors
    if not all(source.data_ptr() == target.data_ptr() for source, target in zip(sources, targets, strict=True)):
        torch._foreach_copy_(targets, sources)
    torch._foreach_mul_(targets, scale)
