"""A run of three phases whose mixtures, batch sizes and curves differ, killed in each phase and at each boundary."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from megatron_dsmath.config.phases import phases
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.data.audit.audit import audit
from megatron_dsmath.data.audit.ledger import Ledger
from megatron_dsmath.data.audit.run_batches import open_recorded_batches
from megatron_dsmath.errors import CheckpointError, Refusals
from megatron_dsmath.training.inputs import open_inputs
from tests.support.corpora import small_run
from tests.support.ranks import run_ranks
from tests.training.ranks import Row, read_rows, rows_of, train_run, train_until_killed, with_fault

THREE: list[dict[str, Any]] = [
    {"name": "rise", "length": "4 steps", "learning_rate": "warm up over 3 steps, constant"},
    {
        "name": "stable",
        "length": "2K tokens",  # 4 steps of 16 x 32
        "learning_rate": "constant until 50%, drop to 50%",
        "sequences_per_step": 16,
        "weights": {"mathematics": 0.3, "code": 0.7},
    },
    {"name": "anneal", "length": "4 steps", "learning_rate": "1-sqrt to 0", "weights": {"code": 1.0}},
]
PEAK = 1e-2
RATES = [
    *(PEAK / 3, PEAK * 2 / 3, PEAK, PEAK),
    *(PEAK, PEAK, PEAK / 2, PEAK / 2),
    *(PEAK / 2 * (1 - (done / 4) ** 0.5) for done in range(4)),
]
SAMPLES = [8, 8, 8, 8, 16, 16, 16, 16, 8, 8, 8, 8]
STEPS = len(SAMPLES)
# Each step is saved, and a kill comes before its save: the run continues one step before the killed one.
KILLS: list[tuple[int, int, dict[str, Any]]] = [
    (3, 1, {}),  # within the first phase
    (5, 2, {"parallel__tensor": 2}),  # after step 4, at the first boundary
    (7, 2, {}),  # data-parallel, within the second phase
    (9, 2, {"parallel__pipeline": 2}),  # at the second boundary
    (11, 1, {}),  # within the third phase
]
SAME_SUMS_IN_ANOTHER_ORDER = 1e-5


def phased_run(inputs: Path, output: Path, listed: list[dict[str, Any]] = THREE, **overrides: Any) -> RunConfig:
    values = {"steps": None, "warmup_steps": None, "drops": [], "phases": listed}
    schedule = {f"schedule__{key}": value for key, value in values.items()}
    return small_run(inputs, output, **(schedule | {"checkpoint__every_steps": 1} | overrides))


@pytest.fixture(scope="module")
def alone(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run on one process."""
    output = tmp_path_factory.mktemp("alone")
    run_ranks(1, train_run, phased_run(inputs, output))
    return output


@pytest.fixture(scope="module")
def disturbed(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run, killed and continued in other layouts."""
    output = tmp_path_factory.mktemp("disturbed")
    for step, ranks, layout in KILLS:
        with pytest.raises(RuntimeError, match=r"rank \d died"):
            run_ranks(ranks, train_until_killed, phased_run(inputs, output, **layout), step)
    run_ranks(2, train_run, phased_run(inputs, output, parallel__tensor=2))
    return output


def test_rates_batches_and_phases_are_those_of_the_run_file(alone: Path) -> None:
    rows = rows_of(alone)
    assert [row["learning_rate"] for row in rows] == pytest.approx(RATES, rel=1e-15)
    assert [row["phase"] for row in rows] == [1] * 4 + [2] * 4 + [3] * 4
    assert [row["consumed_samples"] for row in rows] == np.cumsum(SAMPLES).tolist()
    assert [row["consumed_tokens"] for row in rows] == (32 * np.cumsum(SAMPLES)).tolist()


def test_each_corpus_is_within_two_samples_of_its_weight_in_each_phase(alone: Path) -> None:
    plan = Ledger(alone / "ledger").read_plan()
    batches = open_recorded_batches(plan, None, 320)
    first = 0
    for weights, count in (({"mathematics": 0.75, "code": 0.25}, 32), (THREE[1]["weights"], 64), ({"code": 1.0}, 32)):
        corpora = [next(batches.read_passages(sample))[0] for sample in range(first, first + count)]
        for name, weight in weights.items():
            drawn = np.cumsum([corpus == name for corpus in corpora])
            assert np.abs(drawn - weight * np.arange(1, count + 1)).max() <= 2
        assert set(corpora) == set(weights)
        first += count


def test_every_phase_is_in_the_plan_before_the_first_step(inputs: Path, tmp_path: Path) -> None:
    plan = open_inputs(phased_run(inputs, tmp_path), None).batches.plan
    assert [version.first_sample for version in plan.versions] == [0, 32, 96]


def test_validation_measures_the_corpora_of_all_phases_in_each(alone: Path) -> None:
    measured = [row["validation_loss_by_corpus"] for row in rows_of(alone) if "validation_loss" in row]
    assert [set(losses) for losses in measured] == [{"mathematics", "code"}] * 3  # after steps 4, 8 and 12
    assert all(loss is not None for losses in measured for loss in losses.values())
    for row, weights in zip(
        (row for row in rows_of(alone) if "validation_loss" in row), ((0.75, 0.25), (0.3, 0.7), (0, 1)), strict=True
    ):
        losses = row["validation_loss_by_corpus"]
        expected = weights[0] * losses["mathematics"] + weights[1] * losses["code"]
        assert row["validation_loss"] == pytest.approx(expected, rel=1e-12)


def test_a_run_killed_in_each_phase_and_at_each_boundary_reads_and_learns_the_same(
    alone: Path, disturbed: Path
) -> None:
    ours, theirs = rows_of(disturbed), rows_of(alone)
    assert read_rows(disturbed / "ledger" / "steps.jsonl") == read_rows(alone / "ledger" / "steps.jsonl")
    for name in ("learning_rate", "phase", "consumed_samples", "tokens_by_corpus", "epochs_by_corpus"):
        assert [row[name] for row in ours] == [row[name] for row in theirs]
    assert _losses(ours) == pytest.approx(_losses(theirs), rel=SAME_SUMS_IN_ANOTHER_ORDER)


def test_the_audit_holds_over_all_phases(alone: Path, disturbed: Path) -> None:
    for folder in (alone, disturbed):
        found = audit(folder)
        assert found.faults == ()
        assert (found.steps, found.versions) == (STEPS, 3)
        assert max(corpus.largest_deviation_samples for corpus in found.totals.corpora) <= 2


def test_a_rerun_appends_a_phase_and_reads_on(inputs: Path, tmp_path: Path) -> None:
    """From a run in the older form, without phases: 5 steps of 8."""
    run_ranks(1, train_run, small_run(inputs, tmp_path, schedule__steps=5, schedule__drops=[]))
    rows = rows_of(tmp_path)
    first = {"name": "first", "length": "5 steps", "learning_rate": "warm up over 2 steps, constant"}
    run_ranks(1, train_run, phased_run(inputs, tmp_path, [first, THREE[2]]))
    longer = rows_of(tmp_path)
    assert longer[:5] == rows
    assert [row["phase"] for row in longer] == [1] * 5 + [2] * 4
    found = audit(tmp_path)
    assert (found.faults, found.totals.repeated_samples, found.totals.missing_samples) == ((), 0, 0)
    assert longer[-1]["learning_rate"] == pytest.approx(PEAK * (1 - 0.75**0.5), rel=1e-15)


def _changed(index: int, **changes: Any) -> list[dict[str, Any]]:
    return [phase | changes if number == index else phase for number, phase in enumerate(THREE)]


@pytest.mark.parametrize(
    ("listed", "key"),
    [
        (_changed(0, length="3 steps"), "schedule.phases"),
        (_changed(0, sequences_per_step=4), "schedule.phases"),
        (_changed(1, sequences_per_step=8, length="4 steps"), "schedule.sequences_per_step"),
        (_changed(1, weights={"code": 1.0}), "data.corpora.code.weight"),
    ],
)
def test_a_change_of_what_was_read_is_refused(
    listed: list[dict[str, Any]], key: str, inputs: Path, six_steps: Path
) -> None:
    with pytest.raises((CheckpointError, Refusals)) as refusal:
        open_inputs(phased_run(inputs, six_steps, listed), six_steps / "checkpoints" / "step_6")
    errors = refusal.value.errors if isinstance(refusal.value, Refusals) else [refusal.value]
    assert any(error.what.startswith(key) for error in errors)


@pytest.mark.parametrize(
    "listed", [_changed(1, length="5 steps"), _changed(2, weights={"mathematics": 1.0}), THREE[:2]]
)
def test_what_is_not_read_may_change(listed: list[dict[str, Any]], inputs: Path, six_steps: Path) -> None:
    run = phased_run(inputs, six_steps, listed)
    found = open_inputs(run, six_steps / "checkpoints" / "step_6")
    plan, *_, last = found.batches.plan, *phases(run)
    assert dict(last.weights) == {corpus.name: corpus.weight for corpus in plan.versions[-1].corpora}  # type: ignore[attr-defined]
    assert plan.versions[-1].end_sample == sum(phase.samples for phase in phases(run))  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def six_steps(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The run, stopped in its second phase with a checkpoint of step 6."""
    output = tmp_path_factory.mktemp("six_steps")
    with pytest.raises(RuntimeError, match="rank 0 died"):
        run_ranks(1, train_until_killed, phased_run(inputs, output), 7)
    yield output


def test_skipped_samples_move_the_later_phases(inputs: Path, tmp_path: Path) -> None:
    """A step of the second phase is not applied: the third begins 16 samples later, and no sample is read twice."""
    run = phased_run(inputs, tmp_path, guard__non_finite="skip")
    run_ranks(1, with_fault, "nan:step.gradients:count=6,7", train_run, run)  # the sixth step, computed twice
    assert [row["learning_rate"] for row in rows_of(tmp_path)] == pytest.approx(RATES, rel=1e-15)
    found = audit(tmp_path)
    assert (found.faults, found.totals.skipped_samples) == ((), 16)
    assert rows_of(tmp_path)[-1]["consumed_samples"] == sum(SAMPLES) + 16


def test_a_rewind_over_a_boundary_skips_all_samples_since_the_checkpoint(inputs: Path, tmp_path: Path) -> None:
    """Step 6 is in the second phase, the checkpoint of step 3 in the first."""
    run = phased_run(inputs, tmp_path, guard__non_finite="rewind", guard__rewind_steps=3, checkpoint__keep=5)
    run_ranks(1, with_fault, "nan:step.gradients:count=7,8", train_run, run)
    rows = rows_of(tmp_path)
    assert [row["learning_rate"] for row in rows] == pytest.approx(RATES, rel=1e-15)
    found = audit(tmp_path)
    # skipped: the fourth step, two steps of the second phase, and the rejected one
    assert (found.faults, found.totals.skipped_samples) == ((), 8 + 3 * 16)
    assert rows[-1]["consumed_samples"] == sum(SAMPLES) + 8 + 3 * 16


def _losses(rows: list[Row]) -> list[float]:
    return [row["loss"] for row in rows]
