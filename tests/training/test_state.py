"""The definition of a spike, compared with numpy's mean and standard deviation of the window."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from megatron_dsmath.config.sections import GuardConfig
from megatron_dsmath.data.audit.ledger import StepHash
from megatron_dsmath.training.guard import Judgement, judge
from megatron_dsmath.training.state import SpikeWindow, State
from megatron_dsmath.training.step import StepSums

DRAW = np.random.default_rng(5)
LOSSES, NORMS = DRAW.normal(3.0, 0.1, 200).tolist(), DRAW.normal(1.0, 0.2, 200).tolist()


def after(steps: int) -> SpikeWindow:
    memory = SpikeWindow()
    for loss, norm in zip(LOSSES[:steps], NORMS[:steps], strict=True):
        memory = memory.after_step(loss, norm, spiked=False)
    return memory


def judged(window: SpikeWindow, loss: float, norm: float, **policy: str) -> Judgement:
    guard = GuardConfig.model_validate(
        {
            "non_finite": "stop",
            "spike": "flag",
            "rewind_steps": 1,
            "verify_every_steps": 0,
            "setup_timeout_seconds": 1.0,
            "step_timeout_seconds": 1.0,
            "save_timeout_seconds": 1.0,
            **policy,
        }
    )
    return judge(guard, State(step=200, spike_window=window), StepSums(loss, {}, {}, norm, [], StepHash(0, 0)))


@pytest.mark.parametrize("steps", [64, 100, 128, 200])
def test_sigmas_are_those_of_the_last_128_steps(steps: int) -> None:
    losses, norms = LOSSES[:steps][-128:], NORMS[:steps][-128:]
    expected = [(5.0 - np.mean(losses)) / np.std(losses, ddof=1), (0.1 - np.mean(norms)) / np.std(norms, ddof=1)]
    assert after(steps).sigmas(5.0, 0.1) == pytest.approx(tuple(expected), rel=1e-9)  # the same sums in fp64


def test_nothing_is_a_spike_before_half_of_the_window_is_there_or_while_nothing_varies() -> None:
    assert after(63).sigmas(1e9, 1e9) == (None, None)
    constant = SpikeWindow(losses=(2.0,) * 128, gradient_norms=tuple(NORMS[:128]))
    assert constant.sigmas(2.0, 1.0)[0] is None
    assert judged(after(63), 1e9, 1e9).action == "apply"


@pytest.mark.fault(
    "R13",
    injected="a loss or gradient norm more than 6 standard deviations above the last 128 steps",
    where="the guard alone",
    holds="counted in the metrics; skipped or rewound only where the run file sets it",
)
@pytest.mark.parametrize(("sigmas", "cause"), [(5.99, None), (6.01, "spike"), (-50.0, None)])
@pytest.mark.parametrize("number", ["loss", "norm"])
def test_more_than_six_sigmas_above_are_a_spike(sigmas: float, cause: str | None, number: str) -> None:
    window = LOSSES[72:] if number == "loss" else NORMS[72:]
    value = float(np.mean(window) + sigmas * np.std(window, ddof=1))
    loss, norm = (value, 1.0) if number == "loss" else (3.0, value)
    judgement = judged(after(200), loss, norm)
    assert (judgement.cause, judgement.action) == (cause, "apply")
    assert judgement.spike_window.spikes == (cause == "spike")
    assert (judgement.spike_window.losses[-1], judgement.spike_window.gradient_norms[-1]) == (loss, norm)


@pytest.mark.parametrize("policy", ["skip", "rewind"])
def test_a_spike_is_rejected_only_where_the_run_file_sets_it_and_is_not_kept_in_the_window(policy: str) -> None:
    judgement = judged(after(200), 30.0, 1.0, spike=policy)
    assert (judgement.cause, judgement.action) == ("spike", policy)
    assert (judgement.spike_window.spikes, judgement.spike_window.rejected_steps) == (1, 1)
    assert judgement.spike_window.losses == after(200).losses


@pytest.mark.parametrize("policy", ["stop", "skip", "rewind"])
@pytest.mark.parametrize(("loss", "norm"), [(math.nan, 1.0), (3.0, math.inf), (math.inf, math.nan)])
def test_a_number_that_is_not_finite_is_never_applied_nor_kept_in_the_window(
    loss: float, norm: float, policy: str
) -> None:
    judgement = judged(after(10), loss, norm, non_finite=policy)
    assert (judgement.cause, judgement.action) == ("non_finite", policy)
    assert judgement.spike_window.losses == after(10).losses


def test_rejections_are_counted_until_the_run_makes_progress() -> None:
    memory = SpikeWindow()
    for step, there in [(5, 1), (5, 2), (3, 3), (5, 4), (6, 1), (7, 1), (7, 2)]:  # 3: after going back
        memory = memory.after_rejection(step, spiked=False)
        assert memory.rejected_there == there
    assert memory.rejected_steps == 7


def test_a_manifest_keeps_the_window_bit_for_bit() -> None:
    state = State(step=7, spike_window=after(150).after_rejection(7, spiked=True))
    facts = json.loads(json.dumps(state.as_dict()))
    facts["plan"] = {"seed": 1, "held_out_share": 0.0, "shards": [], "versions": []}
    assert State.from_dict(facts).spike_window == state.spike_window
