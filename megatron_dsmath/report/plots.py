"""The figures of a report. Each takes one run or several, drawn on the same axes, and returns a PNG file's bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from megatron_dsmath.report import number_formats, style
from megatron_dsmath.report.number_formats import achieved_shares, corners, smoothed
from megatron_dsmath.report.record import RunRecord, Series, number
from megatron_dsmath.report.style import Label, colour, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Runs = dict[str, RunRecord]  # by the name under which a run is shown


def loss(runs: Runs) -> bytes:
    """Training loss, every step faint and smoothed strong, and validation loss as circles."""
    with style.figure(height_inches=3.6) as figure:
        axes, labels = figure.subplots(), []
        for index, (name, run) in enumerate(runs.items()):
            called, circles = (plain(name), index) if len(runs) > 1 else ("training", 1)
            labels += _curve(axes, run.series("loss"), colour(index), called)
            validation = run.series("validation_loss")
            _circles(axes, validation, colour(circles))
            if len(runs) == 1 and len(validation.values):
                last = float(validation.values[-1])
                labels.append(Label(last, f"validation {last:.3f}", colour(circles)))
        _finish(axes, "Loss", "nats per token", labels, [run.series("loss") for run in runs.values()])
        return style.png(figure)


def loss_by_corpus(runs: Runs) -> bytes:
    """Smoothed training loss of each corpus, validation as circles; for several runs a panel a corpus."""
    corpora = list(dict.fromkeys(corpus for run in runs.values() for corpus in run.corpora()))
    if len(runs) == 1:
        panels = {"Loss by corpus": [(corpus, run, corpus) for run in runs.values() for corpus in corpora]}
    else:
        panels = {plain(corpus): [(name, run, corpus) for name, run in runs.items()] for corpus in corpora}
    with style.figure(height_inches=3.6 if len(runs) == 1 else 2.0 * len(panels)) as figure:
        every_axes = list(np.atleast_1d(figure.subplots(len(panels), sharex=True)))
        for axes, (title, curves) in zip(every_axes, panels.items(), strict=True):
            labels, drawn = [], []
            for index, (called, run, corpus) in enumerate(curves):
                series = run.series("loss_by_corpus", corpus)
                labels += _curve(axes, series, colour(index), plain(called), raw=False)
                _circles(axes, run.series("validation_loss_by_corpus", corpus), colour(index))
                drawn.append(series)
            _finish(axes, title, "nats per token", labels, drawn)
        _label_steps_once(every_axes)
        return style.png(figure)


def learning_rate(runs: Runs) -> bytes:
    """The learning rate of each step; a single run's corners with their steps."""
    with style.figure(height_inches=2.8) as figure:
        axes, labels = figure.subplots(), []
        for index, (name, run) in enumerate(runs.items()):
            rate = run.series("learning_rate")
            if not len(rate.values):
                continue
            axes.plot(rate.steps, rate.values, color=colour(index))
            if len(runs) > 1:
                last = float(rate.values[-1])
                labels.append(Label(last, f"{plain(name)} {number_formats.rate(last)}", colour(index)))
            else:
                _annotate_corners(axes, rate)
        axes.set_ylim(bottom=0)
        style.format_axis(axes, number_formats.rate)
        _finish(axes, "Learning rate", "", labels)
        return style.png(figure)


def _annotate_corners(axes: Axes, rate: Series) -> None:
    for index, (step, value) in enumerate(corners(rate)):
        peak = index == 0  # the figure is empty below its plateau, and to the left of a drop's level
        axes.plot([step], [value], "o", color=colour(0), markersize=4)
        axes.annotate(
            f"step {step:,}: {number_formats.rate(value)}",
            (step, value),
            xytext=(7, -7) if peak else (-7, 0),
            textcoords="offset points",
            ha="left" if peak else "right",
            va="top" if peak else "center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )


def mixture(runs: Runs) -> bytes:
    """Each corpus' share of the tokens so far as a bar, and the configured weight as a line across it."""
    corpora = list(dict.fromkeys(corpus for run in runs.values() for corpus in run.corpora()))
    thickness = 0.72 / len(runs)
    with style.figure(height_inches=0.7 + 0.2 * len(corpora) * (1 + len(runs))) as figure:
        axes = figure.subplots()
        for index, (name, run) in enumerate(runs.items()):
            centres = np.arange(len(corpora)) + thickness * (index - (len(runs) - 1) / 2)
            _bars(axes, run, dict(zip(corpora, centres, strict=True)), thickness, colour(index), plain(name))
        axes.set_yticks(range(len(corpora)), [plain(corpus) for corpus in corpora])
        axes.invert_yaxis()
        axes.set_xlim(0, 1.35 * axes.dataLim.x1)
        axes.grid(visible=False)
        axes.xaxis.set_visible(False)  # every bar carries its number
        axes.spines.bottom.set_visible(False)
        axes.set_title("Mixture")
        if len(runs) > 1:
            axes.legend(frameon=False, loc="lower right")
        return style.png(figure)


def _bars(axes: Axes, run: RunRecord, centres: dict[str, float], thickness: float, ink: str, called: str) -> None:
    weights, shares = run.weights(), achieved_shares(run)
    achieved = [shares.get(corpus, 0.0) for corpus in centres]
    axes.barh(list(centres.values()), achieved, 0.9 * thickness, color=ink, alpha=0.75, label=called)
    for corpus, centre in centres.items():
        weight = weights.get(corpus, 0.0)
        axes.plot([weight, weight], [centre - thickness / 2, centre + thickness / 2], color=style.INK)
        text = f"{number_formats.share(shares.get(corpus))} of {number_formats.share(weight)}"
        place = (max(shares.get(corpus, 0.0), weight), centre)
        axes.annotate(text, place, xytext=(6, 0), textcoords="offset points", va="center", fontsize=8.5)


def throughput(runs: Runs) -> bytes:
    """Tokens per second and seconds per step, with their medians."""
    with style.figure(height_inches=4.4) as figure:
        upper, lower = figure.subplots(2, sharex=True)
        _medians(upper, runs, "tokens_per_second", "Tokens per second", number_formats.short)
        _medians(lower, runs, "step_seconds", "Seconds per step", number_formats.short)
        _label_steps_once([upper, lower])
        return style.png(figure)


def _medians(axes: Axes, runs: Runs, metric: str, title: str, form: Callable[[float], str]) -> None:
    labels, drawn = [], []
    for index, (name, run) in enumerate(runs.items()):
        series = run.series(metric)
        if len(series.values):
            median = float(np.median(series.values))
            axes.plot(series.steps, series.values, ".", color=colour(index), markersize=2.5, alpha=0.5)
            axes.axhline(median, color=colour(index), linewidth=1.2)
            called = "median" if len(runs) == 1 else plain(name)
            labels.append(Label(median, f"{called} {form(median)}", colour(index)))
            drawn.append(series)
    # The first step of a process is slow beyond compare; it may leave the picture.
    highest = max((float(np.percentile(series.values, 98)) for series in drawn), default=1.0)
    axes.set_ylim(0, 1.3 * highest)
    style.format_axis(axes, form)
    _finish(axes, title, "", labels)


def gradient_norm(runs: Runs) -> bytes:
    """The norm of all gradients before clipping, on a logarithmic axis; a single run's limit as a dotted line."""
    from matplotlib.ticker import LogLocator

    with style.figure(height_inches=2.8) as figure:
        axes, labels = figure.subplots(), []
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0)))
        for index, (name, run) in enumerate(runs.items()):
            called = "norm" if len(runs) == 1 else plain(name)
            labels += _curve(axes, run.series("grad_norm"), colour(index), called)
            limit = number(run.setting("optimizer.gradient_clip"))
            if len(runs) == 1 and limit:
                axes.axhline(limit, color=style.FAINT, linestyle=":", linewidth=1.4)
                labels.append(Label(limit, f"clipped at {limit:g}", style.FAINT))
        style.format_axis(axes, number_formats.short)
        _finish(axes, "Gradient norm", "", labels)
        return style.png(figure)


def _curve(axes: Axes, series: Series, ink: str, called: str, raw: bool = True) -> list[Label]:
    """Draw a series smoothed, and faintly as it is; return the label for its end, where it has one."""
    if not len(series.values):
        return []
    smooth = smoothed(series)
    if raw:
        axes.plot(series.steps, series.values, color=ink, linewidth=0.8, alpha=0.3)
    axes.plot(series.steps, smooth, color=ink, marker="o" if len(smooth) == 1 else "", markersize=4)
    return [Label(float(smooth[-1]), f"{called} {smooth[-1]:.3f}", ink)]


def _circles(axes: Axes, series: Series, ink: str) -> None:
    every = 1 + len(series.steps) // 40  # more circles would hide the curve
    steps, values = series.steps[::every], series.values[::every]
    axes.plot(steps, values, "o", markersize=4.5, markerfacecolor="white", markeredgecolor=ink)


def _finish(axes: Axes, title: str, unit: str, labels: Sequence[Label], within: Sequence[Series] = ()) -> None:
    """Title, axes and labels; `within` are the curves that decide the height, all but their highest two hundredth."""
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title)
    axes.set_ylabel(unit)
    axes.set_xlabel("step")
    axes.margins(x=0.01)
    axes.xaxis.set_major_locator(MaxNLocator("auto", steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    style.format_axis(axes, number_formats.short, "x")
    heights = np.concatenate([smoothed(series) for series in within]) if within else np.array([])
    if len(heights):
        low, high = float(heights.min()), float(np.percentile(heights, 99.5))
        margin = 0.06 * (high - low) or 0.1
        axes.set_ylim(low - margin, high + margin)
    style.label_ends(axes, labels)


def _label_steps_once(every_axes: Sequence[Axes]) -> None:
    for axes in every_axes[:-1]:
        axes.set_xlabel("")
