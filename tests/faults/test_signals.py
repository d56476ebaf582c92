"""A run that is asked to stop in any phase."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.faults.runs import LAYOUTS, Bits, Trial
from tests.training.ranks import status_of

# The phase in which the signal comes to one rank or to all: the step that is saved then, and the exit code.
PHASES = {
    "setup.begin": (0, 75),
    "step.begin:step=4": (5, 75),
    "microbatch.begin:count=2": (1, 75),
    "validation.begin": (4, 75),
    "save.begin:step=3": (4, 75),
    "checkpoint.copying:step=3": (4, 75),
    "checkpoint.copied:step=3": (4, 75),
    "checkpoint.copied": (4, 75),  # again in the save that the first one asks for
    "writer.inside_file": (12, 0),  # the writer's own process: the rank was not asked
    "end.begin": (12, 0),
}


@pytest.mark.fault(
    "R8",
    injected="SIGTERM or SIGUSR1 in each phase: to one rank, to all ranks, twice, to the process that writes",
    where="DP2, TP2, PP2: setup, step, microbatch, validation, save, copy, write, end",
    holds="all ranks agree on one step, save it once and end with 75 (before the first step: 75 and no checkpoint; "
    "after the last step: 0); started again, the run ends bit for bit like an undisturbed one",
)
@pytest.mark.parametrize(
    ("kind", "phase", "rank", "layout"),
    [
        ("terminate", "checkpoint.copied", None, "DP2"),
        ("warn", "microbatch.begin:count=2", 1, "PP2"),
        *(
            pytest.param(kind, phase, rank, layout, marks=pytest.mark.long)
            for layout in LAYOUTS
            for phase in PHASES
            for kind, rank in (("terminate", 1), ("warn", 0), ("terminate", None))
        ),
    ],
)
def test_a_signal_in_any_phase(
    kind: str, phase: str, rank: int | None, layout: str, trial: Callable[..., Trial], undisturbed: Bits
) -> None:
    run, (step, code) = trial(layout), PHASES[phase]
    ending = run.go(f"{kind}:{phase}" + ("" if rank is None else f":rank={rank}"))
    assert ending.codes == [code, code], ending.said
    assert ending.said.count("error[stopped-on-request]") == (code == 75)
    assert status_of(run.output)["step"] == run.last_step == step
    assert run.saved_steps()[-1:] == ([step] if step else [])
    run.ends_like(undisturbed(layout))
