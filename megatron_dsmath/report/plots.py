"""The figures of a report. Each function draws one or several runs on the same axes and returns a PNG file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from megatron_dsmath.report import style
from megatron_dsmath.report.number_formats import format_rate, format_share, format_short
from megatron_dsmath.report.record import RunRecord, Series, number
from megatron_dsmath.report.style import Label, colour, printable_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Runs = dict[str, RunRecord]  # by the displayed name
CORNER = 0.05  # a relative change of the learning rate in one step that a smooth schedule makes only near zero


def draw_loss(runs: Runs) -> bytes:
    """Training loss of each step (faint) and smoothed, and validation loss as circles."""
    with style.figure(height_inches=3.6) as figure:
        axes, labels = figure.subplots(), []
        for index, (name, run) in enumerate(runs.items()):
            label, circles = (printable_name(name), index) if len(runs) > 1 else ("training", 1)
            labels += _curve(axes, run.series("loss"), colour(index), label)
            validation = run.series("validation_loss")
            _circles(axes, validation, colour(circles))
            if len(runs) == 1 and len(validation.values):
                last = float(validation.values[-1])
                labels.append(Label(last, f"validation {last:.3f}", colour(circles)))
        _finish(axes, "Loss", "nats per token", labels, [run.series("loss") for run in runs.values()])
        return style.png(figure)


def draw_loss_by_corpus(runs: Runs) -> bytes:
    """Smoothed training loss by corpus, validation loss as circles. Several runs have one panel per corpus."""
    corpora = list(dict.fromkeys(corpus for run in runs.values() for corpus in run.corpora()))
    if len(runs) == 1:
        panels = {"Loss by corpus": [(corpus, run, corpus) for run in runs.values() for corpus in corpora]}
    else:
        panels = {printable_name(corpus): [(name, run, corpus) for name, run in runs.items()] for corpus in corpora}
    with style.figure(height_inches=3.6 if len(runs) == 1 else 2.0 * len(panels)) as figure:
        every_axes = np.atleast_1d(figure.subplots(len(panels), sharex=True))
        for axes, (title, curves) in zip(every_axes, panels.items(), strict=True):
            labels, drawn = [], []
            for index, (label, run, corpus) in enumerate(curves):
                drawn.append(run.series("loss_by_corpus", corpus))
                labels += _curve(axes, drawn[-1], colour(index), printable_name(label), raw=False)
                _circles(axes, run.series("validation_loss_by_corpus", corpus), colour(index))
            _finish(axes, title, "nats per token", labels, drawn)
        return style.png(figure)


def draw_learning_rate(runs: Runs) -> bytes:
    """The learning rate of each step; for a single run with its corners and phases."""
    with style.figure(height_inches=2.8) as figure:
        axes, labels = figure.subplots(), []
        for index, (name, run) in enumerate(runs.items()):
            rate = run.series("learning_rate")
            if not len(rate.values):
                continue
            axes.plot(rate.steps, rate.values, color=colour(index))
            if len(runs) > 1:
                last = float(rate.values[-1])
                labels.append(Label(last, f"{printable_name(name)} {format_rate(last)}", colour(index)))
            else:
                _annotate_corners(axes, rate)
        if len(runs) == 1:
            _mark_phases(axes, *runs.values())
        axes.set_ylim(bottom=0)
        style.format_axis(axes.yaxis, format_rate)
        _finish(axes, "Learning rate", "", labels)
        return style.png(figure)


def _mark_phases(axes: Axes, run: RunRecord) -> None:
    """Draw a line where each phase begins, with its name; nothing for a run with one phase."""
    every = run.phases()
    for phase in every if len(every) > 1 else ():
        if phase.first_step < run.rows[-1]["step"]:
            axes.axvline(phase.first_step, color=style.FAINT, linestyle=":", linewidth=1.0)
            axes.annotate(
                printable_name(phase.name),
                (phase.first_step, 0.02),
                xycoords=("data", "axes fraction"),
                xytext=(3, 0),
                textcoords="offset points",
                color=style.FAINT,
                fontsize=8.5,
            )


def rate_corners(rate: Series) -> list[tuple[int, float]]:
    """(step, learning rate) at the first step of the peak, and at each step after a drop."""
    if not len(rate.values):
        return []
    peak = int(np.argmax(rate.values))
    before, after = rate.values[peak:-1], rate.values[peak + 1 :]
    falls = np.concatenate(([False, False], after < before))  # the two steps before the peak, and those after it
    in_a_decay = falls[:-2] & falls[1:-1]  # the rate fell in both steps before: a decay to zero has no corner
    drops = peak + 1 + np.flatnonzero((after < before * (1 - CORNER)) & ~in_a_decay)
    return [(int(rate.steps[index]), float(rate.values[index])) for index in (peak, *drops)]


def _annotate_corners(axes: Axes, rate: Series) -> None:
    for index, (step, value) in enumerate(rate_corners(rate)):
        peak = index == 0  # there is room below the plateau, and left of the level after a drop
        axes.plot([step], [value], "o", color=colour(0), markersize=4)
        axes.annotate(
            f"step {step:,}: {format_rate(value)}",
            (step, value),
            xytext=(7, -7) if peak else (-7, 0),
            textcoords="offset points",
            ha="left" if peak else "right",
            va="top" if peak else "center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


def draw_mixture(runs: Runs) -> bytes:
    """Each corpus' share of the tokens so far as a bar, and its configured weight as a line."""
    corpora = list(dict.fromkeys(corpus for run in runs.values() for corpus in run.corpora()))
    thickness = 0.72 / len(runs)
    with style.figure(height_inches=0.7 + 0.2 * len(corpora) * (1 + len(runs))) as figure:
        axes = figure.subplots()
        for index, (name, run) in enumerate(runs.items()):
            centres = np.arange(len(corpora)) + thickness * (index - (len(runs) - 1) / 2)
            _bars(axes, run, dict(zip(corpora, centres, strict=True)), thickness, colour(index), printable_name(name))
        axes.set_yticks(range(len(corpora)), [printable_name(corpus) for corpus in corpora])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.35 * axes.dataLim.x1)
        axes.grid(visible=False)
        axes.xaxis.set_visible(False)  # every bar has its number
        axes.spines.bottom.set_visible(False)
        axes.set_title("Mixture")
        if len(runs) > 1:
            axes.legend(frameon=False, loc="lower right")
        return style.png(figure)


def _bars(axes: Axes, run: RunRecord, centres: dict[str, float], thickness: float, tint: str, label: str) -> None:
    weights, shares = run.weights(), run.achieved_shares()
    achieved = [shares.get(corpus, 0.0) for corpus in centres]
    axes.barh(list(centres.values()), achieved, 0.9 * thickness, color=tint, alpha=0.75, label=label)
    for corpus, centre in centres.items():
        weight = weights.get(corpus, 0.0)
        axes.plot([weight, weight], [centre - thickness / 2, centre + thickness / 2], color=style.INK)
        text = f"{format_share(shares.get(corpus))} of {format_share(weight)}"
        end = (max(shares.get(corpus, 0.0), weight), centre)
        axes.annotate(text, end, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8.5)


def draw_throughput(runs: Runs) -> bytes:
    """Tokens per second and seconds per step, with their medians."""
    with style.figure(height_inches=4.4) as figure:
        upper, lower = figure.subplots(2, sharex=True)
        _medians(upper, runs, "tokens_per_second", "Tokens per second")
        _medians(lower, runs, "step_seconds", "Seconds per step")
        return style.png(figure)


def _medians(axes: Axes, runs: Runs, metric: str, title: str) -> None:
    labels, highest = [], 0.0
    for index, (name, run) in enumerate(runs.items()):
        series = run.series(metric)
        if len(series.values):
            median = float(np.median(series.values))
            axes.plot(series.steps, series.values, ".", color=colour(index), markersize=2.5, alpha=0.5)
            axes.axhline(median, color=colour(index), linewidth=1.2)
            label = "median" if len(runs) == 1 else printable_name(name)
            labels.append(Label(median, f"{label} {format_short(median)}", colour(index)))
            highest = max(highest, float(np.percentile(series.values, 98)))
    # The first step of a process is far slower than the others, and may be outside the limits.
    axes.set_ylim(0, 1.3 * (highest or 1.0))
    style.format_axis(axes.yaxis, format_short)
    _finish(axes, title, "", labels)


def draw_gradient_norm(runs: Runs) -> bytes:
    """The gradient norm before clipping on a logarithmic axis; for a single run with the clipping limit."""
    from matplotlib.ticker import LogLocator

    with style.figure(height_inches=2.8) as figure:
        axes, labels = figure.subplots(), []
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
        for index, (name, run) in enumerate(runs.items()):
            label = "norm" if len(runs) == 1 else printable_name(name)
            labels += _curve(axes, run.series("grad_norm"), colour(index), label)
            limit = number(run.setting("optimizer.gradient_clip"))
            if len(runs) == 1 and limit:
                axes.axhline(limit, color=style.FAINT, linestyle=":", linewidth=1.4)
                labels.append(Label(limit, f"clipped at {limit:g}", style.FAINT))
        style.format_axis(axes.yaxis, format_short)
        _finish(axes, "Gradient norm", "", labels)
        return style.png(figure)


def _curve(axes: Axes, series: Series, tint: str, label: str, raw: bool = True) -> list[Label]:
    """Draw a smoothed series, and with `raw` its values faintly; return the label of its end, if it has values."""
    if not len(series.values):
        return []
    smooth = series.smoothed()
    if raw:
        axes.plot(series.steps, series.values, color=tint, linewidth=0.8, alpha=0.3)
    axes.plot(series.steps, smooth, color=tint, marker="o" if len(smooth) == 1 else "", markersize=4)
    return [Label(float(smooth[-1]), f"{label} {smooth[-1]:.3f}", tint)]


def _circles(axes: Axes, series: Series, tint: str) -> None:
    every = 1 + len(series.steps) // 40  # at most about 40 circles, which do not hide the curve
    steps, values = series.steps[::every], series.values[::every]
    axes.plot(steps, values, "o", markersize=4.5, markerfacecolor="white", markeredgecolor=tint)


def _finish(axes: Axes, title: str, unit: str, labels: Sequence[Label], within: Sequence[Series] = ()) -> None:
    """Set title, axes and labels. The curves `within` decide the limits, without their highest 0.5% of values."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.set_xlabel("step")
    axes.label_outer()  # of several axes above each other, only the lowest has the label
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    style.format_axis(axes.xaxis, format_short)
    heights = np.concatenate([series.smoothed() for series in within]) if within else np.array([])
    if len(heights):
        low, high = float(heights.min()), float(np.percentile(heights, 99.5))
        margin = 0.06 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)
    style.label_ends(axes, labels)
