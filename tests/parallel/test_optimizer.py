from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.model import decoder
from megatron_dsmath.parallel.optimizer import AdamW, apply_gradients, gather_gradients, gradient_norm
from tests.support import training
from tests.support.ranks import run_ranks
from tests.support.runs import run_config

SETTINGS: dict[str, Any] = {"lr": 1e-2, "weight_decay": 0.1, "betas": (0.9, 0.95), "eps": 1e-8}
STEPS = 20


def descend(kind: Any, dtype: torch.dtype = torch.float32, **options: Any) -> torch.Tensor:
    """20 steps over two parameters with gradients of very different sizes, the rate halved after 10."""
    generator = torch.Generator().manual_seed(0)
    parameters = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in ((5, 7), (11,))]
    optimizer = kind(parameters, **SETTINGS, **options)
    for step in range(STEPS):
        for parameter in parameters:
            draw = torch.randn(parameter.shape, generator=generator) * 10.0 ** torch.randint(-6, 3, (1,))
            parameter.grad = draw.to(dtype)
        if step == STEPS // 2:
            optimizer.param_groups[0]["lr"] /= 2
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in parameters])


def numpy_adamw() -> Any:
    """Loshchilov and Hutter, algorithm 2, in fp64."""

    class Written:
        def __init__(self, parameters: list[torch.Tensor], **settings: Any) -> None:
            self.param_groups = [settings]
            self.parameters, self.steps = parameters, 0
            self.first = [np.zeros(parameter.shape) for parameter in parameters]
            self.second = [np.zeros(parameter.shape) for parameter in parameters]

        def step(self) -> None:
            self.steps += 1
            (settings,) = self.param_groups
            rate, (beta1, beta2) = settings["lr"], settings["betas"]
            for index, parameter in enumerate(self.parameters):
                assert parameter.grad is not None
                gradient = parameter.grad.numpy()
                self.first[index] = beta1 * self.first[index] + (1 - beta1) * gradient
                self.second[index] = beta2 * self.second[index] + (1 - beta2) * gradient**2
                mean = self.first[index] / (1 - beta1**self.steps)
                root = np.sqrt(self.second[index] / (1 - beta2**self.steps))
                decayed = parameter.detach().numpy() * (1 - rate * settings["weight_decay"])
                parameter.data = torch.from_numpy(decayed - rate * mean / (root + settings["eps"]))

    return Written


def test_twenty_steps_equal_torchs_fused_adamw_bit_for_bit() -> None:
    torch.manual_seed(3)
    ours = descend(AdamW, adam_w_mode=True)
    torch.manual_seed(3)
    assert torch.equal(ours, descend(torch.optim.AdamW, fused=True))


def test_twenty_steps_equal_the_papers_formula_in_fp64() -> None:
    torch.manual_seed(3)
    ours = descend(AdamW, torch.float64, adam_w_mode=True)
    torch.manual_seed(3)
    theirs = descend(numpy_adamw(), torch.float64)
    assert (ours - theirs).abs().max() < 1e-12  # fp64, values of order 1


def test_the_step_is_in_the_group_and_in_the_state_dict() -> None:
    parameter = torch.ones(3, requires_grad=True)
    first, second = (AdamW([parameter], **SETTINGS, adam_w_mode=True) for _ in range(2))
    for _ in range(2):
        parameter.grad = torch.ones(3)
        first.step()
    assert sorted(first.state[parameter]) == ["exp_avg", "exp_avg_sq"]
    second.load_state_dict(first.state_dict())
    assert second.param_groups[0]["step"] == 2
    assert torch.equal(second.state[parameter]["exp_avg"], first.state[parameter]["exp_avg"])


def decayed_without_gradients(run: RunConfig) -> dict[str, float]:
    """Two updates with zero gradients: the remaining factor of each parameter."""
    opened = training.start(run)
    named = dict(decoder.named_parameters(opened.model_chunks))
    before = {name: tensor.detach().clone() for name, tensor in named.items()}
    for _ in range(2):
        for chunk in opened.model_chunks:
            chunk.zero_grad_buffer()
        apply_gradients(opened.updater, gradient_norm(opened.updater), learning_rate=0.5, weight_decay=0.2)
    factors = {}
    for name, tensor in named.items():
        factor = tensor.detach().flatten()[0] / before[name].flatten()[0]
        torch.testing.assert_close(tensor.detach(), before[name] * factor)
        factors[name] = factor.item()
    return factors


@pytest.mark.parametrize(
    ("ranks", "overrides"),
    [
        (1, {}),
        (2, {"parallel__distributed_optimizer": True}),
        (2, {"parallel__distributed_optimizer": False}),
        (2, {"parallel__tensor": 2, "parallel__sequence": True}),
    ],
)
def test_every_matrix_decays_and_no_norm_does(ranks: int, overrides: dict[str, Any]) -> None:
    for factors in run_ranks(ranks, decayed_without_gradients, run_config(**overrides)):
        norms = {name for name in factors if "norm" in name}
        assert len(norms) == 4 * 2 + 1
        assert len(factors) - len(norms) == 4 * 4 + 2
        for name, factor in factors.items():
            # (1 - rate x decay) in each of two steps; norms stay equal bit for bit.
            assert factor == (1.0 if name in norms else pytest.approx(0.9**2, rel=1e-6)), name


def clipped(run: RunConfig) -> tuple[float, dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The norm before clipping, and every gradient before and after it."""
    opened = training.start(run)
    opened.accumulate(0)
    named = dict(decoder.named_parameters(opened.model_chunks))

    def copies() -> dict[str, np.ndarray]:
        return {name: tensor.main_grad.clone().numpy() for name, tensor in named.items()}  # type: ignore[attr-defined]

    before = copies()
    norm = gradient_norm(opened.updater)
    apply_gradients(opened.updater, norm, learning_rate=0.0, weight_decay=0.0)
    return norm, before, copies()


@pytest.mark.parametrize("share", [0.25, 4.0])
def test_gradients_are_clipped_like_torch(share: float) -> None:
    ((norm, _, _),) = run_ranks(1, clipped, run_config())
    bound = share * norm
    ((reported, before, after),) = run_ranks(1, clipped, run_config(optimizer__gradient_clip=bound))
    theirs = {name: torch.zeros(gradient.shape, requires_grad=True) for name, gradient in before.items()}
    for name, tensor in theirs.items():
        tensor.grad = torch.from_numpy(before[name].copy())
    assert reported == pytest.approx(torch.nn.utils.clip_grad_norm_(theirs.values(), bound).item(), rel=1e-6)  # fp32
    for name, tensor in theirs.items():
        assert tensor.grad is not None
        torch.testing.assert_close(torch.from_numpy(after[name]), tensor.grad, rtol=1e-6, atol=0)
    assert any((after[name] != before[name]).any() for name in before) == (share < 1)


SMALL_STEPS, SMALL_RATE = 40, 2e-5


def small_steps_in_bf16(run: RunConfig) -> tuple[str, np.ndarray, np.ndarray]:
    """The gradients' type, and weights before and after: equal gradients move a weight by the rate in each update."""
    opened = training.start(run)
    (_, weight), *_ = decoder.named_parameters(opened.model_chunks)
    before = weight.detach().float().numpy().copy()
    assert weight.dtype == torch.bfloat16
    for _ in range(SMALL_STEPS):
        for chunk in opened.model_chunks:
            chunk.zero_grad_buffer()
        weight.main_grad.fill_(1e-3)  # type: ignore[attr-defined]
        apply_gradients(opened.updater, gradient_norm(opened.updater), SMALL_RATE, weight_decay=0.0)
    return str(weight.main_grad.dtype), before, weight.detach().float().numpy()  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_distributed", [True, False])
def test_bf16_weights_follow_fp32_masters(is_distributed: bool) -> None:
    run = run_config(precision="bf16", parallel__distributed_optimizer=is_distributed)
    ((gradient_type, before, after),) = run_ranks(1, small_steps_in_bf16, run)
    assert gradient_type == "torch.float32"
    large = np.abs(before) > 2**-6  # half a unit is at least 2^-14 = 6e-5 here, so a single update is lost
    assert large.mean() > 0.8
    expected = torch.from_numpy(before - SMALL_STEPS * SMALL_RATE).bfloat16().float().numpy()
    # fp32 sums of 40 updates, then one rounding to bf16, in either direction at a tie.
    np.testing.assert_allclose(after[large], expected[large], rtol=2**-7)
    assert (after[large] == expected[large]).mean() > 0.99
    assert (after[large] != before[large]).mean() > 0.9


Gradients = dict[str, np.ndarray]


def gradients_before_and_after_gathering(run: RunConfig) -> tuple[Gradients, Gradients]:
    opened = training.start(run)
    opened.accumulate(0)

    def copies() -> Gradients:
        named = decoder.named_parameters(opened.model_chunks)
        return {name: tensor.main_grad.numpy().copy() for name, tensor in named}  # type: ignore[attr-defined]

    before = copies()
    gather_gradients(opened.model_chunks)
    return before, copies()


@pytest.mark.parametrize("layout", [{}, {"parallel__overlap_communication": True}])
def test_gathered_gradients_are_those_of_plain_data_parallelism(layout: dict[str, bool]) -> None:
    plain_run = run_config(parallel__distributed_optimizer=False)
    plain = run_ranks(2, gradients_before_and_after_gathering, plain_run)[0][1]
    for before, after in run_ranks(2, gradients_before_and_after_gathering, run_config(**layout)):
        assert all(np.allclose(after[name], plain[name], rtol=0, atol=1e-7) for name in plain)  # sums of two: one order
        assert not all(np.allclose(before[name], plain[name], rtol=0, atol=1e-7) for name in plain)  # only a shard
