"""The phases of a run with the steps of each, and the segments of its learning rate, from the run file.

A run file without `schedule.phases` has one phase.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

from megatron_dsmath.config.curve import Part, Shape, parse_curve, parse_length
from megatron_dsmath.config.sections import RunConfig


class Phase(NamedTuple):
    """A part of a run with one mixture, one global batch size and one curve of the learning rate."""

    name: str
    first_step: int  # completed steps before the phase
    end_step: int  # completed steps after the phase
    sequences_per_step: int
    tokens_per_step: int  # target tokens
    weights: Mapping[str, float]  # of the corpora that are read, in the order of data.corpora
    curve: tuple[Part, ...]  # empty with `warmup_steps` and `drops`

    @property
    def steps(self) -> int:
        """The number of steps."""
        return self.end_step - self.first_step

    @property
    def samples(self) -> int:
        """The number of sequences."""
        return self.steps * self.sequences_per_step


class Segment(NamedTuple):
    """A part of the learning rate between two numbers of completed steps."""

    phase: int
    text: str
    shape: Shape
    first_step: int
    end_step: int
    first_rate: float  # of the step before, or where a warm-up begins
    last_rate: float  # reached at `end_step`
    floor: float = 0.0  # the lowest rate of `inverse-sqrt`
    time_scale: int = 1  # of `inverse-sqrt`: the steps of the phase before it


def phases(run: RunConfig) -> tuple[Phase, ...]:
    """Return the phases of a valid run, in order."""
    schedule, found, first_step = run.schedule, list[Phase](), 0
    default = {corpus.name: corpus.weight for corpus in run.data.corpora}
    if not schedule.phases:
        assert schedule.steps is not None
        tokens = schedule.sequences_per_step * run.data.sequence_length
        weights = {name: weight for name, weight in default.items() if weight}
        curve = () if schedule.learning_rate is None else parse_curve(schedule.learning_rate)
        return (Phase("run", 0, schedule.steps, schedule.sequences_per_step, tokens, weights, curve),)
    for phase in schedule.phases:
        sequences = phase.sequences_per_step or schedule.sequences_per_step
        tokens = sequences * run.data.sequence_length
        end_step = first_step + parse_length(phase.length).steps_of_phase(tokens)
        own = default if phase.weights is None else phase.weights
        weights = {name: own[name] for name in default if own.get(name)}
        curve = parse_curve(phase.learning_rate)
        found.append(Phase(phase.name, first_step, end_step, sequences, tokens, weights, curve))
        first_step = end_step
    return tuple(found)


def total_steps(run: RunConfig) -> int:
    """Return the optimizer steps of the run."""
    return phases(run)[-1].end_step


def total_tokens(run: RunConfig) -> int:
    """Return the target tokens of the run."""
    return sum(phase.steps * phase.tokens_per_step for phase in phases(run))


def phase_index(run: RunConfig, step: int) -> int:
    """Return the index of the phase of the step after `step` completed steps; the last phase after the end."""
    return _index_at(phases(run), step)


def phase_at(run: RunConfig, step: int) -> Phase:
    """Return the phase of the step after `step` completed steps; the last phase after the end."""
    every = phases(run)
    return every[_index_at(every, step)]


def _index_at(every: Sequence[Phase], step: int) -> int:
    return next((index for index, phase in enumerate(every) if step < phase.end_step), len(every) - 1)


def segments(run: RunConfig) -> list[Segment]:
    """Return the segments of the learning rate; a segment may have no step in a short run."""
    if run.schedule.learning_rate is None and not run.schedule.phases:
        return _warmup_and_drops(run)
    found, rate, peak = list[Segment](), 0.0, run.schedule.peak_learning_rate
    for index, phase in enumerate(phases(run)):
        if index == 0 and phase.curve[0].shape != "warm up":
            rate = peak
        step = phase.first_step
        for part in phase.curve:
            segment = _segment(part, index, phase, step, rate, peak)
            found.append(segment)
            step, rate = segment.end_step, segment.last_rate
        if step < phase.end_step:  # the rate stays after the last part
            found.append(Segment(index, phase.curve[-1].text, "constant", step, phase.end_step, rate, rate))
    return found


def _segment(part: Part, index: int, phase: Phase, first_step: int, rate: float, peak: float) -> Segment:
    """Return the segment of a part that begins at `first_step` after a step at `rate`."""
    end_step = phase.end_step
    if part.length is not None:
        steps = part.length.steps(phase.steps, phase.tokens_per_step)
        end_step = steps + (first_step if part.relation == "over" else phase.first_step)
    first, last = rate, rate if part.last is None else part.last.value(peak)
    lowest, time_scale = 0.0, max(1, first_step - phase.first_step)
    if part.shape == "warm up":
        first = rate if part.first is None else part.first.value(peak)
        last = peak if part.last is None else last
    elif part.shape == "inverse-sqrt":
        lowest = 0.0 if part.last is None else last
        last = max(lowest, rate * (time_scale / max(time_scale, end_step - phase.first_step)) ** 0.5)
    return Segment(index, part.text, part.shape, first_step, end_step, first, last, lowest, time_scale)


def _warmup_and_drops(run: RunConfig) -> list[Segment]:
    """Return the segments of `warmup_steps` and `drops`; a warm-up may end after a drop, and comes first."""
    schedule, steps = run.schedule, total_steps(run)
    peak, warmup_steps, drops = schedule.peak_learning_rate, schedule.warmup_steps or 0, schedule.drops
    found = [Segment(0, f"warm up over {warmup_steps} steps", "warm up", 0, warmup_steps, 0.0, peak)]
    starts = [0, *(int(Fraction(str(drop.after)) * steps) for drop in drops), steps]
    rates = [peak, *(peak * drop.factor for drop in drops)]
    for first, end, rate in zip(starts, starts[1:], rates, strict=False):
        bounds = max(first, warmup_steps), max(end, warmup_steps)
        found.append(Segment(0, "constant", "constant", *bounds, rate, rate))
    return found
