"""The learning rate of each step equals its closed form (DeepSeekMath, section 2.2.1; DeepSeek LLM, section 2.3)."""

from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dsmath.config import load
from megatron_dsmath.config.sections import DropConfig, ScheduleConfig
from megatron_dsmath.schedule.learning_rate import first_step_after, learning_rate
from tests.support.seeded import PAPER_RUN

# A rate is a product of two or three numbers: each operation rounds by at most half of 2.2e-16.
ROUNDING = 1e-15


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
    ],
)
def test_rate_follows_the_paper_at_each_corner(step: int, rate: float) -> None:
    assert learning_rate(load(PAPER_RUN).schedule, step) == pytest.approx(rate, rel=ROUNDING)


def test_rate_of_fine_tuning_is_constant() -> None:
    """Section 3.2: 500 steps at 5e-5."""
    schedule = _schedule(steps=500, peak=5e-5, warmup=0)
    assert {learning_rate(schedule, step) for step in range(500)} == {5e-5}


def test_the_rate_after_the_end_of_the_run_stays_at_the_last_drop() -> None:
    schedule = _schedule(steps=10, peak=1.0, warmup=0, drops=((0.5, 0.25),))
    assert learning_rate(schedule, 10) == learning_rate(schedule, 1000) == 0.25


@settings(deadline=None)
@given(
    steps=st.integers(1, 100_000),
    peak=st.floats(1e-8, 1.0),
    warmup=st.integers(0, 5_000),
    percents=st.lists(st.integers(1, 99), max_size=3, unique=True).map(sorted),
    share=st.floats(0, 1, exclude_max=True),
)
def test_rate_equals_its_closed_form(steps: int, peak: float, warmup: int, percents: list[int], share: float) -> None:
    step = int(share * steps)
    schedule = _schedule(steps, peak, warmup, tuple((percent / 100, 0.5**n) for n, percent in enumerate(percents, 1)))
    # In integers: a drop applies from its percentage of the steps on, rounded down to a step.
    drops = sum(step >= percent * steps // 100 for percent in percents)
    expected = peak * (step + 1) / warmup if step < warmup else peak * 0.5**drops
    assert learning_rate(schedule, step) == pytest.approx(expected, rel=ROUNDING)


@pytest.mark.parametrize(
    ("share", "steps", "step"),
    [
        (0.8, 47_684, 38_147),
        (0.9, 47_684, 42_915),
        (0.8, 50_000, 40_000),  # the paper's run with a batch of 10,000,000 tokens
        (0.9, 50_000, 45_000),
        (0.7, 10, 7),  # 6.999... in floating point
        (0.29, 100, 29),  # 28.999... in floating point
        (0.5, 1, 0),
    ],
)
def test_a_drop_applies_from_its_share_of_the_run_on(share: float, steps: int, step: int) -> None:
    assert first_step_after(share, steps) == step


def test_drops_of_deepseek_llm_7b_fall_at_1_6_and_1_8_trillion_tokens() -> None:
    """Its README: 2T tokens in steps of 2,304 sequences of 4,096, drops at 1.6T and 1.8T; to within one step."""
    tokens_per_step = 2304 * 4096
    steps = -(-2_000_000_000_000 // tokens_per_step)
    for share, tokens in ((0.8, 1.6e12), (0.9, 1.8e12)):
        assert abs(first_step_after(share, steps) * tokens_per_step - tokens) <= tokens_per_step


@given(digits=st.integers(1, 9_999), steps=st.integers(1, 10**9))
def test_a_share_is_an_exact_decimal_number(digits: int, steps: int) -> None:
    share = Decimal(digits) / 10_000
    assert first_step_after(float(share), steps) == int(share * steps)


def _schedule(steps: int, peak: float, warmup: int, drops: tuple[tuple[float, float], ...] = ()) -> ScheduleConfig:
    return ScheduleConfig(
        steps=steps,
        sequences_per_step=1,
        peak_learning_rate=peak,
        warmup_steps=warmup,
        drops=tuple(DropConfig(after=after, factor=factor) for after, factor in drops),
    )
