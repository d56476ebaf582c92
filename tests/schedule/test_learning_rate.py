"""The learning rate of each step equals its closed form, and the schedulers of torch and transformers.

The closed forms are computed with decimal numbers of 40 digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, getcontext
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.lr_scheduler import CosineAnnealingLR, ExponentialLR, LinearLR, LRScheduler
from transformers import get_inverse_sqrt_schedule, get_wsd_schedule

from megatron_dsmath.config import load
from megatron_dsmath.config.phases import segments
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.schedule.learning_rate import learning_rate
from tests.support.runs import run_config
from tests.support.seeded import PAPER_RUN

getcontext().prec = 40
# A rate is a few operations, each of which rounds by at most half of 2.2e-16; libm's cosine and power are within 1e-16.
ROUNDING = 2e-15
RUNS = (1, 10, 1_000, 47_684)
PEAK = 4.2e-4


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 4.2e-4 / 2000),  # the first step learns
        (999, 2.1e-4),
        (1_999, 4.2e-4),
        (2_000, 4.2e-4),
        (38_146, 4.2e-4),
        (38_147, 1.3272e-4),  # 31.6% after 80% of 47,684
        (42_914, 1.3272e-4),
        (42_915, 4.2e-5),  # 10% after 90%
        (47_683, 4.2e-5),
        (47_684, 4.2e-5),  # after the end
    ],
)
def test_rate_follows_the_paper_at_each_corner(step: int, rate: float) -> None:
    assert learning_rate(load(PAPER_RUN), step) == pytest.approx(rate, rel=ROUNDING)


def test_the_sentence_of_the_paper_gives_the_rates_of_the_older_form_bit_for_bit() -> None:
    sentence = _rates(47_684, "warm up over 2000 steps, constant until 80%, drop to 31.6% until 90%, drop to 10%")
    older = run_config(
        schedule__steps=47_684,
        schedule__peak_learning_rate=PEAK,
        schedule__warmup_steps=2000,
        schedule__drops=[{"after": 0.8, "factor": 0.316}, {"after": 0.9, "factor": 0.1}],
    )
    assert sentence == [learning_rate(older, step) for step in range(47_684)]
    # as before phases existed: peak x (step + 1) / 2000, then peak x factor
    before = [PEAK * (step + 1) / 2000 if step < 2000 else PEAK for step in range(38_147)]
    before += [PEAK * 0.316] * (42_915 - 38_147) + [PEAK * 0.1] * (47_684 - 42_915)
    assert sentence == before


@settings(deadline=None)
@given(
    steps=st.integers(1, 100_000),
    peak=st.floats(1e-8, 1.0),
    warmup=st.integers(0, 5_000),
    percents=st.lists(st.integers(1, 99), max_size=3, unique=True).map(sorted),
    share=st.floats(0, 1, exclude_max=True),
)
def test_the_older_form_equals_its_closed_form(
    steps: int, peak: float, warmup: int, percents: list[int], share: float
) -> None:
    step = int(share * steps)
    run = run_config(
        schedule__steps=steps,
        schedule__peak_learning_rate=peak,
        schedule__warmup_steps=warmup,
        schedule__drops=[{"after": percent / 100, "factor": 0.5**n} for n, percent in enumerate(percents, 1)],
    )
    # In integers: a drop applies from its percentage of the steps on, rounded down to a step.
    drops = sum(step >= percent * steps // 100 for percent in percents)
    expected = peak * (step + 1) / warmup if step < warmup else peak * 0.5**drops
    assert learning_rate(run, step) == pytest.approx(expected, rel=ROUNDING)


def _decimal_cosine(x: Fraction) -> Decimal:
    """cos(pi x) by its Taylor series."""
    angle = Decimal("3.141592653589793238462643383279502884197169") * Decimal(x.numerator) / Decimal(x.denominator)
    term = total = Decimal(1)
    for n in range(1, 30):
        term *= -angle * angle / ((2 * n - 1) * (2 * n))
        total += term
    return total


# shape: the share of the way from the first rate to the last after the share x of the steps
CLOSED_FORMS: dict[str, Callable[[Fraction], Decimal]] = {
    "linear": lambda x: Decimal(x.numerator) / Decimal(x.denominator),
    "cosine": lambda x: (1 - _decimal_cosine(x)) / 2,
    "1-sqrt": lambda x: (Decimal(x.numerator) / Decimal(x.denominator)).sqrt(),
    "exponential": lambda x: (1 - Decimal("0.1") ** (Decimal(x.numerator) / Decimal(x.denominator))) / Decimal("0.9"),
}


@pytest.mark.parametrize("steps", RUNS)
@pytest.mark.parametrize("shape", CLOSED_FORMS)
def test_a_decay_equals_its_closed_form_at_every_step(shape: str, steps: int) -> None:
    """Constant to 80%, then the decay to 10% of the peak over the rest."""
    rates = _rates(steps, f"constant until 80%, {shape} to 10%")
    corner = 8 * steps // 10
    assert rates[:corner] == [PEAK] * corner
    peak = Decimal(PEAK)
    # Every step of the short runs, and 97 steps apart in the long one, with its first and last.
    sampled = sorted({*range(corner, steps, 1 if steps <= 1_000 else 97), corner, steps - 1})
    for step in sampled:
        expected = peak * (1 - Decimal("0.9") * CLOSED_FORMS[shape](Fraction(step - corner, steps - corner)))
        assert rates[step] == pytest.approx(float(expected), rel=ROUNDING), step
    assert rates[corner] == PEAK


@pytest.mark.parametrize("steps", [10, 1_000, 47_684])
def test_inverse_sqrt_equals_its_closed_form_at_every_step(steps: int) -> None:
    rates = _rates(steps, "warm up over 10%, inverse-sqrt to 40%")
    warmup = steps // 10
    for step in range(warmup, steps):
        expected = max(PEAK * 0.4, float(Decimal(PEAK) * (Decimal(warmup) / Decimal(step)).sqrt()))
        assert rates[step] == pytest.approx(expected, rel=ROUNDING), step


@pytest.mark.parametrize("steps", RUNS)
def test_a_warm_up_ends_at_the_peak_in_its_last_step(steps: int) -> None:
    rates = _rates(steps, "warm up from 1% over 50%, constant")
    warmup = steps // 2
    expected = [PEAK * (0.01 + 0.99 * (step + 1) / warmup) for step in range(warmup)]
    assert rates[:warmup] == pytest.approx(expected, rel=ROUNDING)
    assert rates[warmup:] == [PEAK] * (steps - warmup)


def _schedule(make: Callable[[torch.optim.Optimizer], LRScheduler], steps: int) -> list[float]:
    """The rates that a scheduler of torch gives to `steps` steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    scheduler, rates = make(optimizer), list[float]()
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


def _wsd(decay: str) -> Callable[[Any], Any]:
    return lambda optimizer: get_wsd_schedule(
        optimizer, num_warmup_steps=0, num_stable_steps=800, num_decay_steps=200, decay_type=decay, min_lr_ratio=0.1
    )


LIBRARIES: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "torch's LinearLR": ("linear to 25%", lambda optimizer: LinearLR(optimizer, 1.0, 0.25, total_iters=1_000)),
    "torch's LinearLR as warm-up": (
        "warm up over 100 steps, constant",
        lambda optimizer: LinearLR(optimizer, 1 / 100, 1.0, total_iters=99),
    ),
    "torch's CosineAnnealingLR": (
        "cosine to 10%",
        lambda optimizer: CosineAnnealingLR(optimizer, T_max=1_000, eta_min=0.1 * PEAK),
    ),
    "torch's ExponentialLR": (
        "exponential to 10%",
        lambda optimizer: ExponentialLR(optimizer, gamma=0.1 ** (1 / 1_000)),
    ),
    "transformers' linear WSD": ("constant until 80%, linear to 10%", _wsd("linear")),
    "transformers' cosine WSD": ("constant until 80%, cosine to 10%", _wsd("cosine")),
    "transformers' 1-sqrt WSD": ("constant until 80%, 1-sqrt to 10%", _wsd("1-sqrt")),
}


@pytest.mark.parametrize(("curve", "scheduler"), LIBRARIES.values(), ids=LIBRARIES.keys())
def test_a_curve_equals_the_scheduler_of_a_library(curve: str, scheduler: Callable[[Any], Any]) -> None:
    # torch multiplies from step to step, so that a thousand roundings add up.
    assert _rates(1_000, curve) == pytest.approx(_schedule(scheduler, 1_000), rel=1e-12)


def test_inverse_sqrt_equals_transformers_after_the_warm_up() -> None:
    """Its warm-up begins at 0, so that only the steps after it are equal."""
    theirs = _schedule(lambda optimizer: get_inverse_sqrt_schedule(optimizer, num_warmup_steps=100), 1_000)
    assert _rates(1_000, "warm up over 100 steps, inverse-sqrt")[100:] == pytest.approx(theirs[100:], rel=1e-12)


def test_a_phase_begins_with_the_last_rate_of_the_phase_before() -> None:
    run = _phased(
        {"name": "rise", "length": "4 steps", "learning_rate": "warm up"},
        {"name": "stay", "length": "3 steps", "learning_rate": "constant"},
        {"name": "fall", "length": "5 steps", "learning_rate": "linear to 50%"},
        {"name": "rewarm", "length": "2 steps", "learning_rate": "warm up to 80%"},
    )
    shares = [learning_rate(run, step) / PEAK for step in range(14)]
    assert shares == pytest.approx(
        [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0, 1.0, 0.9, 0.8, 0.7, 0.6, 0.65, 0.8], rel=ROUNDING
    )


def test_lengths_in_tokens_are_whole_steps() -> None:
    """A phase is rounded up to whole steps, a corner within it down: 8 x 32 tokens a step, in exact arithmetic."""
    run = _phased(
        {"name": "one", "length": "1K tokens", "learning_rate": "constant until 600 tokens, drop to 50%"},
        {"name": "two", "length": "1.1K tokens", "sequences_per_step": 4, "learning_rate": "constant"},
    )
    bounds = [(segment.first_step, segment.end_step) for segment in segments(run)]
    assert bounds == [(0, 2), (2, 4), (4, 4 + math.ceil(1_100 / 128))]


@given(digits=st.integers(1, 9_999), steps=st.integers(1, 10**9))
def test_a_corner_is_at_an_exact_share_of_the_steps(digits: int, steps: int) -> None:
    percent = Decimal(digits) / 100
    run = run_config(
        **_without_older_form(), schedule__steps=steps, schedule__learning_rate=f"constant until {percent:f}%"
    )
    assert segments(run)[0].end_step == digits * steps // 10_000


def test_drops_of_deepseek_llm_7b_fall_at_1_6_and_1_8_trillion_tokens() -> None:
    """Its README: 2T tokens in steps of 2,304 sequences of 4,096, drops at 1.6T and 1.8T; to within one step."""
    tokens_per_step = 2304 * 4096
    steps = -(-2_000_000_000_000 // tokens_per_step)
    curve = "constant until 80%, drop to 31.6% until 90%, drop to 10%"
    run = run_config(**_without_older_form(), schedule__steps=steps, schedule__learning_rate=curve)
    for segment, tokens in zip(segments(run), (1.6e12, 1.8e12), strict=False):
        assert abs(segment.end_step * tokens_per_step - tokens) <= tokens_per_step


def _without_older_form() -> dict[str, Any]:
    return {"schedule__warmup_steps": None, "schedule__drops": []}


def _rates(steps: int, curve: str) -> list[float]:
    run = run_config(
        **_without_older_form(),
        schedule__steps=steps,
        schedule__peak_learning_rate=PEAK,
        schedule__learning_rate=curve,
    )
    return [learning_rate(run, step) for step in range(steps)]


def _phased(*phases: dict[str, Any]) -> RunConfig:
    return run_config(
        **_without_older_form(),
        schedule__steps=None,
        schedule__peak_learning_rate=PEAK,
        schedule__phases=list(phases),
    )
