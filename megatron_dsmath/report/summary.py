"""The tables at the top of a report: model, progress, losses, speed and goodput of a run."""

from __future__ import annotations

import math

import numpy as np
from pydantic import ValidationError

from megatron_dsmath.config.sections import ModelConfig
from megatron_dsmath.report.number_formats import format_count, format_duration, format_loss, format_share
from megatron_dsmath.report.record import RunRecord, Series, number, smoothing_window

Facts = list[tuple[str, str]]


def facts(run: RunRecord) -> Facts:
    """(label, value) rows of the summary, with the same labels for every run."""
    return [
        ("Model", _model(run)),
        ("Layout", _layout(run)),
        ("Steps", f"{format_count(run.rows[-1]['step'])} of {format_count(_planned_steps(run))}"),
        ("Phases", ", ".join(f"{phase.name} {phase.steps:,} steps" for phase in run.phases()) or "–"),
        ("Tokens", f"{format_count(run.last('consumed_tokens'))} of {format_count(_planned_tokens(run))}"),
        ("Training loss", _training_loss(run)),
        ("Validation loss", _last_loss(run.series("validation_loss"), "–")),
        ("Throughput", _throughput(run)),
        ("Time", _time(run)),
        ("State", _state(run)),
        ("Checkpoints", _checkpoints(run)),
    ]


def goodput(run: RunRecord) -> Facts:
    """(label, value) rows on the use of the time since the first start, including restarts (`training.goodput`)."""
    save_seconds = _latest(run, "save_seconds")
    return [
        ("Time in useful steps", format_share(_latest(run, "goodput"))),
        ("Restarts", format_count(_latest(run, "restarts"))),
        ("Repeated steps", format_count(_latest(run, "lost_steps"))),
        ("Time blocked by saves", "–" if save_seconds is None else format_duration(save_seconds)),
        ("Failed saves", format_count(_latest(run, "failed_saves"))),
    ]


def _latest(run: RunRecord, name: str) -> float | None:
    """The value in STATUS.json, which is newer than the last row; from the rows while the run has not written it."""
    value = number(run.status.get(name))
    return run.last(name) if value is None else value


def _model(run: RunRecord) -> str:
    try:
        shape = ModelConfig.model_validate(run.setting("model"))
    except ValidationError:  # the keys of another version; the settings below list them
        return "–"
    return (
        f"{shape.parameters:,} parameters: {shape.layers} layers of {shape.hidden_size:,}, "
        f"{shape.attention_heads} heads, vocabulary {shape.vocabulary_size:,}, {run.setting('precision')}"
    )


def _layout(run: RunRecord) -> str:
    processes = number(run.starts[-1].get("world_size")) if run.starts else None
    parts = [f"{format_count(processes)} processes"] if processes else []
    parts += [f"{name} {run.setting(f'parallel.{name}')}" for name in ("tensor", "pipeline")]
    parts += ["sequence parallel"] if run.setting("parallel.sequence") else []
    parts += ["distributed optimizer"] if run.setting("parallel.distributed_optimizer") else []
    return ", ".join(parts)


def _planned_steps(run: RunRecord) -> float | None:
    every = run.phases()
    return every[-1].end_step if every else number(run.setting("schedule.steps"))


def _planned_tokens(run: RunRecord) -> float | None:
    if every := run.phases():
        return sum(phase.steps * phase.tokens_per_step for phase in every)
    keys = ("schedule.steps", "schedule.sequences_per_step", "data.sequence_length")
    factors = [factor for key in keys if (factor := number(run.setting(key))) is not None]
    return math.prod(factors) if len(factors) == len(keys) else None


def _training_loss(run: RunRecord) -> str:
    series = run.series("loss")
    window = smoothing_window(len(series.values))
    mean = f"; mean of the last {window} steps {format_loss(series.smoothed()[-1])}" if window > 1 else ""
    return f"{_last_loss(series, 'no finite value')}{mean}"


def _last_loss(series: Series, missing: str) -> str:
    return f"{format_loss(series.values[-1])} at step {series.steps[-1]:,}" if len(series.values) else missing


def _throughput(run: RunRecord) -> str:
    speeds, utilisation = run.series("tokens_per_second").values, run.series("mfu").values
    if not len(speeds):
        return "–"
    median = f"{format_count(float(np.median(speeds)))} tokens/s (median)"
    return median + (f", MFU {format_share(float(np.median(utilisation)))}" if len(utilisation) else "")


def _time(run: RunRecord) -> str:
    in_steps = format_duration(float(run.series("step_seconds").values.sum()))
    began = number(run.starts[0].get("time_unix")) if run.starts else None
    ended = number(run.status.get("time_unix"))
    if began is None or ended is None:
        return f"{in_steps} in steps"
    return f"{format_duration(ended - began)} since the first start, {in_steps} of it in steps"


def _state(run: RunRecord) -> str:
    parts = [str(run.status[key]) for key in ("state", "message") if run.status.get(key)] or ["no STATUS.json yet"]
    parts += ["the last line of metrics.jsonl is unfinished and left out"] if run.unfinished_row else []
    return "; ".join(parts)


def _checkpoints(run: RunRecord) -> str:
    whole = [checkpoint.step for checkpoint in run.checkpoints if checkpoint.whole]
    return f"{len(whole)}, the newest at step {whole[-1]:,}" if whole else "none"
