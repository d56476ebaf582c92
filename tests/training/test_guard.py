"""Numbers that are not finite: never applied on any rank, never saved, reported; and the effect of each policy."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.checkpoint.manifest import Manifest
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.data.audit.audit import audit
from megatron_dsmath.training.state import State
from tests.support.corpora import small_run, write_run_file
from tests.support.ranks import run_ranks
from tests.training.ranks import LAYOUTS, dsmath, numbers_of, read_rows, rows_of, status_of, train_run, with_fault

# A step is 8 samples in microbatches of 2, checkpoints come after steps 3, 6 and 9.
SKIP = {"guard__non_finite": "skip"}
REWIND = {"guard__non_finite": "rewind", "guard__rewind_steps": 3, "checkpoint__asynchronous": False}


def rejection_reports(run: Path) -> list[dict[str, Any]]:
    return [json.loads(file.read_text()) for file in sorted((run / "logs").glob("rejected_*.json"))]


def saved_steps(run: Path) -> list[str]:
    return sorted(folder.name for folder in (run / "checkpoints").glob("step_*"))


@pytest.mark.fault("R12")
@pytest.mark.parametrize("fault", ["nan:step.loss:rank=1:step=3", "infinity:step.gradients:rank=1:step=3"])
@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"parallel__distributed_optimizer": False},  # the other copy learns of it from the common sum only
        {"parallel__tensor": 2},
        {"parallel__pipeline": 2},
    ],
    ids=str,
)
def test_a_number_that_is_not_finite_on_one_rank_stops_all_before_any_weight_changes(
    layout: dict[str, Any], fault: str, inputs: Path, tmp_path: Path
) -> None:
    run_file = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml", **layout)
    endings = run_ranks(2, with_fault, fault, dsmath, ["train", str(run_file)])
    assert [ending.code for ending in endings] == [70, 70]
    said = "".join(ending.err for ending in endings)
    assert said.count("the loss or the gradient is not finite") == 1
    assert "computed again: the same, bit for bit" in said
    assert "Traceback" not in said
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2, 3]
    assert saved_steps(tmp_path / "run") == ["step_3"]
    assert (status_of(tmp_path / "run")["state"], status_of(tmp_path / "run")["exit_code"]) == ("failed", 70)
    (facts,) = rejection_reports(tmp_path / "run")
    assert (facts["step"], facts["cause"], facts["first_sample"], facts["samples"]) == (4, "non_finite", 24, 8)


def test_the_report_lists_the_documents_of_the_batch_and_the_rank_that_had_the_number_first(
    inputs: Path, tmp_path: Path
) -> None:
    run_ranks(2, with_fault, "nan:step.loss:rank=1:count=4,6", train_until_rejected, small_run(inputs, tmp_path))
    (facts,) = rejection_reports(tmp_path)
    # Step 2: rank 1 has the second and the fourth microbatch of 2; its count 4 is the fourth, samples 14 and 15;
    # so is its count 6, when the step is computed again.
    assert (facts["step"], facts["samples_without_finite_loss"]) == (2, [14, 15])
    assert (facts["loss"], facts["grad_norm"]) == ("nan", "nan")
    assert facts["computed_again"] == "the same, bit for bit"
    assert facts["first_bad_gradient_by_rank"].keys() == {"0", "1"}
    passages = facts["passages"]
    assert {passage["sample"] for passage in passages} == set(range(8, 16))
    assert {Path(passage["shard"]).name for passage in passages} == {"mathematics", "code"}
    for sample in range(8, 16):  # the documents of a sample hold its 33 tokens, one after the other
        held = [passage["end_token"] - passage["first_token"] for passage in passages if passage["sample"] == sample]
        assert sum(held) == 33


def train_until_rejected(run: RunConfig) -> None:
    from megatron_dsmath.errors import InternalError

    with suppress(InternalError):
        train_run(run)


def train_with_samples_skipped(ranks: int, run: RunConfig, step: int, samples: int, rejected_after: int) -> None:
    """Train to `step`, where a checkpoint is saved; edit it so that it skips the next `samples`; continue from it."""
    with pytest.raises(RuntimeError, match="rank 0 died"):
        run_ranks(ranks, with_fault, f"kill:step.begin:step={step}", train_run, run)
    manifest = Path(run.output) / "checkpoints" / f"step_{step}" / "MANIFEST.json"
    facts = json.loads(manifest.read_text())
    state = State.from_dict(facts["state"])
    state = state.skipping(samples, state.spike_window.after_rejection(rejected_after, spiked=False))
    edited = {**facts, "state": state.as_dict(), "next_sample": state.next_sample}
    manifest.write_text(Manifest.model_validate_json(json.dumps(edited)).to_json())
    run_ranks(ranks, train_run, run)


@pytest.mark.fault(
    "R12",
    injected="NaN in the gradients, with `guard.non_finite: skip`",
    where="one process, DP2",
    holds="the step leaves no trace in weights or moments; the ledger's audit holds",
)
@pytest.mark.parametrize("layout", ["one process, bf16", "data 2"])
def test_skipped_data_leaves_no_trace_in_weights_or_moments(layout: str, inputs: Path, tmp_path: Path) -> None:
    ranks, overrides = LAYOUTS[layout]
    run_ranks(
        ranks, with_fault, "nan:step.gradients:count=3,4", train_run, small_run(inputs, tmp_path, **SKIP, **overrides)
    )
    saved = {"checkpoint__every_steps": 2, "checkpoint__asynchronous": False}
    expected = small_run(inputs, tmp_path / "expected", **SKIP, **overrides, **saved)
    train_with_samples_skipped(ranks, expected, step=2, samples=8, rejected_after=2)
    rows = rows_of(tmp_path)
    assert numbers_of(rows) == numbers_of(rows_of(tmp_path / "expected"))
    assert [(row["step"], row["consumed_samples"], row["rejected_steps"]) for row in rows[1:4]] == [
        (2, 16, 0),
        (3, 32, 1),
        (4, 40, 1),
    ]
    found = audit(tmp_path)
    assert found.holds
    assert (found.steps, found.totals.skipped_samples) == (9, 8)


def test_a_run_killed_after_a_skip_resumes_bitwise(inputs: Path, tmp_path: Path) -> None:
    saved_at_once = SKIP | {"checkpoint__asynchronous": False}
    whole, killed = (small_run(inputs, tmp_path / name, **saved_at_once) for name in ("whole", "killed"))
    fault = "nan:step.gradients:count=5,6"
    run_ranks(1, with_fault, fault, train_run, whole)
    with pytest.raises(RuntimeError, match="rank 0 died"):
        run_ranks(1, train_with_fault_until_killed, fault, killed, 7)
    run_ranks(1, train_run, killed)
    assert numbers_of(rows_of(tmp_path / "killed")) == numbers_of(rows_of(tmp_path / "whole"))


def train_with_fault_until_killed(fault: str, run: RunConfig, step: int) -> None:
    from tests.training.ranks import train_until_killed

    with_fault(fault, train_until_killed, run, step)


@pytest.mark.fault(
    "R12",
    injected="NaN in the gradients, with `guard.non_finite: rewind`",
    where="one process, DP2",
    holds="the run continues like a new process from that checkpoint, with the data between skipped",
)
@pytest.mark.parametrize("layout", ["one process", "data 2"])
def test_rewinding_continues_as_a_new_process_from_that_checkpoint_with_the_data_between_skipped(
    layout: str, inputs: Path, tmp_path: Path
) -> None:
    ranks, overrides = LAYOUTS[layout]
    run = small_run(inputs, tmp_path / "run", **REWIND, **overrides)
    run_ranks(ranks, with_fault, "nan:step.gradients:count=8,9", train_run, run)
    rows = rows_of(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert [row["consumed_samples"] for row in rows] == [8, 16, 24, *range(72, 72 + 6 * 8, 8)]  # step 8 ended at 64
    assert rows[-1]["lost_steps"] == 4  # 4 to 7
    found = audit(tmp_path / "run")
    assert found.holds
    assert found.totals.skipped_samples == 64 - 24
    assert [row["step"] for row in read_rows(tmp_path / "run" / "logs" / "metrics_before_start_1.jsonl")] == [
        4,
        5,
        6,
        7,
    ]

    again = small_run(inputs, tmp_path / "again", **REWIND, **overrides)
    train_with_samples_skipped(ranks, again, step=3, samples=40, rejected_after=7)
    assert numbers_of(rows_of(tmp_path / "again")) == numbers_of(rows)


def test_without_a_checkpoint_that_old_rewinding_is_not_possible(inputs: Path, tmp_path: Path) -> None:
    run_file = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml", **REWIND)
    (ending,) = run_ranks(1, with_fault, "nan:step.gradients:count=5,6", dsmath, ["train", str(run_file)])
    assert ending.code == 70
    assert "there is no checkpoint to return to" in ending.err


@pytest.mark.parametrize(("policy", "tried"), [(SKIP, 3), (REWIND, 3)], ids=["skip", "rewind"])
def test_an_error_that_the_data_does_not_cause_is_not_skipped_forever(
    policy: dict[str, Any], tried: int, inputs: Path, tmp_path: Path
) -> None:
    """The gradient of step 8 is NaN, whatever its data is."""
    run_file = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml", **policy)
    (ending,) = run_ranks(1, with_fault, "nan:step.gradients:step=7", dsmath, ["train", str(run_file)])
    assert ending.code == 70
    assert f"{tried} times already" in ending.err
    assert len(rejection_reports(tmp_path / "run")) == tried + 1


@pytest.mark.fault(
    "R12",
    injected="a weight that is not finite",
    where="one process",
    holds="nothing is saved, and the rank is named",
)
def test_a_weight_that_is_not_finite_is_not_saved(inputs: Path, tmp_path: Path) -> None:
    run_file = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml")
    endings = run_ranks(2, with_fault, "nan:save.weights:rank=1:step=6", dsmath, ["train", str(run_file)])
    assert [ending.code for ending in endings] == [70, 70]
    assert "a weight is not finite" in endings[0].err + endings[1].err
    assert "step 6, rank 1" in endings[0].err + endings[1].err
    assert saved_steps(tmp_path / "run") == ["step_3"]
