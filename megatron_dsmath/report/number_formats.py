"""Numbers as a reader sees them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from megatron_dsmath.report.record import RunRecord, Series

CORNER = 0.05  # a relative change of the rate within a step that no smooth schedule makes after its warm-up


def window_steps(measurements: int) -> int:
    """How many measurements a smoothed value is the mean of: a fortieth of the run, 50 at most."""
    return min(max(1, measurements // 40), 50)


def smoothed(series: Series) -> NDArray[np.float64]:
    """The mean over the last `window_steps` measurements at each of them (fewer at the start), shape [measurements]."""
    window = window_steps(len(series.values))
    sums = np.concatenate(([0.0], np.cumsum(series.values)))
    ends = np.arange(1, len(series.values) + 1)
    starts = np.maximum(ends - window, 0)
    return np.asarray((sums[ends] - sums[starts]) / (ends - starts))


def corners(rate: Series) -> list[tuple[int, float]]:
    """Where the learning rate turns: (step, rate) of the first step at the peak, and of each step after a drop."""
    if not len(rate.values):
        return []
    peak = int(np.argmax(rate.values))
    before, after = rate.values[peak:-1], rate.values[peak + 1 :]
    drops = peak + 1 + np.flatnonzero(after < before * (1 - CORNER))
    return [(int(rate.steps[index]), float(rate.values[index])) for index in (peak, *drops)]


def tokens_by_corpus(run: RunRecord) -> dict[str, int]:
    """Tokens that each corpus has given so far; empty where the run does not count them."""
    counts = {corpus: run.last("tokens_by_corpus", corpus) for corpus in run.corpora()}
    return {corpus: int(tokens) for corpus, tokens in counts.items() if tokens is not None}


def achieved_shares(run: RunRecord) -> dict[str, float]:
    """Each corpus' share of the tokens so far; they add up to 1. Empty where the run does not count them.

    Of conversations, the shares of each grouping (`kind/...`, `language/...`, `source/...`) add up to 1.
    """
    tokens = tokens_by_corpus(run)
    totals: dict[str, int] = {}
    for corpus, count in tokens.items():
        totals[_grouping(corpus)] = totals.get(_grouping(corpus), 0) + count
    return {corpus: count / totals[_grouping(corpus)] for corpus, count in tokens.items() if totals[_grouping(corpus)]}


def _grouping(name: str) -> str:
    return name.rpartition("/")[0]


def count(value: float | None) -> str:
    """A whole number: 1,228,800."""
    return "–" if value is None else f"{value:,.0f}"


def loss(value: float | None) -> str:
    """Nats per token: 2.3142."""
    return "–" if value is None else f"{value:.4f}"


def rate(value: float) -> str:
    """A learning rate: 4.2e-4."""
    digits, _, power = f"{value:.3e}".partition("e")
    return f"{digits.rstrip('0').rstrip('.')}e{int(power)}" if value else "0"


def share(value: float | None) -> str:
    """A part of a whole: 55.97%."""
    return "–" if value is None else f"{100 * value:.2f}%"


def short(value: float) -> str:
    """A number in few characters, for an axis: 0.05, 2.5, 48,000, 1.2M."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def size_bytes(value: int) -> str:
    """A size on disk: 13.8 GB."""
    for size, unit in ((10**12, "TB"), (10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if value >= size:
            return f"{value / size:.1f} {unit}"
    return f"{value} bytes"


def duration(seconds: float) -> str:
    """A time in the two units that matter: 2 d 03 h, 1 h 02 min, 3 min 05 s, 4.2 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"
