"""`--set a.b=c`: what it changes, and how a wrong one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_dsmath.config import load
from tests.support.seeded import PAPER_RUN, seeded

# what is wrong: (the assignment, where, found, expected, fix)
BAD = {
    "no value": ("schedule.steps", "--set schedule.steps", "schedule.steps", "key=value", "--set schedule.steps=100"),
    "no key": ("=100", "--set =100", "=100", "key=value", "--set schedule.steps=100"),
    "not YAML": ("schedule.steps=[", "--set schedule.steps", "[", "a YAML value", "in quotes"),
    "an unknown section": ("shedule.steps=1", "--set shedule.steps", "absent", "one of output", "write schedule.steps"),
    "an unknown key": ("schedule.stesp=1", "--set schedule.stesp", "stesp", "schedule.steps", "write schedule.steps"),
    "below a value": ("seed.value=1", "--set seed.value", "seed is 1234", "a section or a list", "it is nested"),
    "beyond a list": (
        "data.corpora.5.weight=1",
        "--set data.corpora.5.weight",
        "absent",
        "0, 1, 2, 3, 4",
        "it is nested",
    ),
    "an item beyond a list": (
        "schedule.drops.2=1",
        "--set schedule.drops.2",
        "absent",
        "one of 0, 1",
        "it is nested",
    ),
    "a word for an index": (
        "data.corpora.first=1",
        "--set data.corpora.first",
        "absent",
        "one of 0, 1",
        "it is nested",
    ),
    "a wrong type": ("schedule.steps=all", "--set schedule.steps", "all", "a whole number", "write digits"),
    "out of range": (
        "data.corpora.0.weight=-1",
        "--set data.corpora.0.weight",
        "-1",
        "greater than or equal to 0",
        "range",
    ),
    "within a new value": (
        "schedule.drops=[{after: 2, factor: 0.1}]",
        "--set schedule.drops: schedule.drops.0.after",
        "2",
        "less than 1",
        "range",
    ),
    "a contradiction": ("parallel.pipeline=4", "--set parallel.pipeline", "30 layers, 4", "divisor", "[7, 8, 8, 7]"),
}


@pytest.mark.parametrize("mistake", BAD.values(), ids=BAD.keys())
def test_a_wrong_override_names_itself_and_a_fix(mistake: tuple[str, ...], tmp_path: Path) -> None:
    assignment, where, found, expected, fix = mistake
    error = seeded(tmp_path).refusal([assignment])
    assert error.where == where
    assert found in str(error.found)
    assert expected in str(error.expected)
    assert fix in str(error.fix)


def test_all_wrong_overrides_are_reported_with_the_mistakes_of_the_file(tmp_path: Path) -> None:
    run = seeded(tmp_path, ("keep: 3", "keep: 1"))
    errors = run.refusals(["seed", "shedule.steps=1", "seed=-1"])
    assert [str(error.where).removeprefix(str(run.path)) for error in errors] == [
        "--set seed",
        "--set shedule.steps",
        "--set seed",
        f":{run.line_of('keep: 1')}: checkpoint.keep",
    ]


def test_overrides_change_values_items_and_lists() -> None:
    run = load(
        PAPER_RUN,
        [
            "schedule.steps=5000",
            "data.corpora.1.weight=7",
            "schedule.drops=[]",
            "model.initial_weights=null",
            "output=runs/a=b",
            "optimizer.epsilon=1e-6",
            "data.corpora.0.max_epochs=2.5",
        ],
    )
    assert run.schedule.steps == 5000
    assert [corpus.weight for corpus in run.data.corpora] == [56, 7, 10, 20, 10]
    assert run.schedule.drops == ()
    assert run.model.initial_weights is None
    assert run.output == "runs/a=b"
    assert run.optimizer.epsilon == 0.000001
    assert run.data.corpora[0].max_epochs == 2.5


def test_the_last_of_two_overrides_wins() -> None:
    assert load(PAPER_RUN, ["seed=1", "seed=2"]).seed == 2
