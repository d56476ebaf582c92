"""The metrics of a run, compared with numbers that are computed by hand from its configuration."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.training.metrics import METRICS
from tests.support.corpora import VOCABULARY, small_run, write_run_file
from tests.support.ranks import run_ranks
from tests.training.ranks import LAYOUTS, Row, dsmath, numbers_of, rows_of, status_of, train_run

# Step k trains on 8 sequences of 32 tokens; 3 : 1 is 6 and 2 of them in every step.
TOKENS_PER_STEP = {"mathematics": 6 * 32, "code": 2 * 32}
LAYOUT_TOLERANCE = 1e-5  # fp32 sums in another order, over 9 steps


@pytest.mark.parametrize("layout", [layout for layout, (ranks, _) in LAYOUTS.items() if ranks > 1])
def test_no_layout_changes_the_data_or_the_losses(
    layout: str, undisturbed: Callable[[str], Path], one_process: list[Row]
) -> None:
    rows = rows_of(undisturbed(layout))
    assert [row["tokens_by_corpus"] for row in rows] == [row["tokens_by_corpus"] for row in one_process]
    for name in ("loss", "validation_loss", "grad_norm"):
        ours, alone = ([row[name] for row in some if name in row] for some in (rows, one_process))
        assert ours == pytest.approx(alone, rel=LAYOUT_TOLERANCE)
    for ours, alone in zip(rows, one_process, strict=True):
        assert ours["loss_by_corpus"] == pytest.approx(alone["loss_by_corpus"], rel=LAYOUT_TOLERANCE)


def test_the_size_of_microbatches_changes_no_loss(inputs: Path, one_process: list[Row], tmp_path: Path) -> None:
    run_ranks(1, train_run, small_run(inputs, tmp_path, parallel__microbatch_sequences=8))
    losses = [row["loss"] for row in rows_of(tmp_path)]
    assert losses == pytest.approx([row["loss"] for row in one_process], rel=LAYOUT_TOLERANCE)


def test_a_learnable_corpus_is_learned(inputs: Path, tmp_path: Path) -> None:
    guessing = math.log(VOCABULARY)  # every token as likely as any other
    run_ranks(1, train_run, small_run(inputs, tmp_path, schedule__steps=30, checkpoint__every_steps=0))
    rows = rows_of(tmp_path)
    assert rows[0]["loss"] == pytest.approx(guessing, rel=0.1)  # first weights are small, so guesses are nearly even
    assert rows[-1]["loss"] < guessing / 5  # the texts repeat a few lines
    assert rows[-1]["validation_loss"] < guessing / 5  # and so do those held out


def test_losses_by_corpus_weighted_by_their_tokens_are_the_loss(one_process: list[Row]) -> None:
    for row in one_process:
        nats = sum(tokens * row["loss_by_corpus"][name] for name, tokens in TOKENS_PER_STEP.items())
        assert nats / sum(TOKENS_PER_STEP.values()) == pytest.approx(row["loss"], rel=1e-12)  # fp64 sums


def test_the_mixture_trained_on_is_the_mixture_asked_for(one_process: list[Row]) -> None:
    for step, row in enumerate(one_process, 1):
        assert row["tokens_by_corpus"] == {name: step * tokens for name, tokens in TOKENS_PER_STEP.items()}
        assert row["consumed_samples"] == 8 * step
        assert row["consumed_tokens"] == 8 * 32 * step == sum(row["tokens_by_corpus"].values())


def test_the_rate_warms_up_and_drops_where_the_run_file_says(one_process: list[Row]) -> None:
    # Warm-up over 2 steps to 1e-2; 31.6% of it after 80% of 9 steps, which is after 7.
    assert [row["learning_rate"] for row in one_process] == [5e-3, *6 * [1e-2], *2 * [3.16e-3]]


def test_validation_runs_every_so_many_steps_and_after_the_last(one_process: list[Row]) -> None:
    assert [row["step"] for row in one_process if "validation_loss" in row] == [4, 8, 9]


def test_the_validation_loss_weighs_the_corpora_as_the_mixture_does(one_process: list[Row]) -> None:
    for row in one_process:
        if "validation_loss" in row:
            by_corpus = row["validation_loss_by_corpus"]
            expected = 0.75 * by_corpus["mathematics"] + 0.25 * by_corpus["code"]
            assert row["validation_loss"] == pytest.approx(expected, rel=1e-12)  # the same sum in fp64


def test_a_run_without_held_out_data_is_not_validated(inputs: Path, tmp_path: Path) -> None:
    run_ranks(1, train_run, small_run(inputs, tmp_path, schedule__steps=2, data__held_out_share=0.0))
    assert [row["step"] for row in rows_of(tmp_path) if "validation_loss" not in row] == [1, 2]


def test_a_row_holds_every_metric_that_is_documented_and_no_other(one_process: list[Row]) -> None:
    names = {name for row in one_process for name in row}
    evaluated = {"evaluation_accuracy", "evaluation_tool_calls"}  # only of a run that was asked to: test_evaluating.py
    assert names == METRICS.keys() - evaluated
    always = {name for name in names if not name.startswith("validation_loss")}
    assert [row["step"] for row in one_process if not always <= row.keys()] == []


def test_training_validation_or_saving_more_often_changes_no_number(
    inputs: Path, one_process: list[Row], tmp_path: Path
) -> None:
    run_ranks(1, train_run, small_run(inputs, tmp_path, validation__every_steps=1, checkpoint__every_steps=2))
    always = [name for name in one_process[0] if not name.startswith("validation_loss")]
    ours, theirs = (
        [{name: row.get(name) for name in always} for row in numbers_of(rows)]
        for rows in (rows_of(tmp_path), one_process)
    )
    assert ours == theirs


def test_a_finished_run_started_again_does_nothing(inputs: Path, tmp_path: Path) -> None:
    run_file = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml", schedule__steps=3)
    for _ in range(2):
        (ending,) = run_ranks(1, dsmath, ["train", str(run_file)])
        assert ending.code == 0
        assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2, 3]
        status = status_of(tmp_path / "run")
        assert (status["state"], status["exit_code"], status["step"]) == ("done", 0, 3)
    assert status["restarts"] == 1


def test_a_loss_that_is_not_finite_ends_the_run_and_nothing_is_saved_after_it(inputs: Path, tmp_path: Path) -> None:
    """Two steps are trained and saved; then the learning rate becomes 1e30, which spoils the weights."""
    saves = {"checkpoint__every_steps": 1, "checkpoint__keep": 9, "checkpoint__asynchronous": False}
    run_file = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml", **saves)
    (ending,) = run_ranks(1, dsmath, ["train", str(run_file), "--set", "schedule.steps=2"])
    assert ending.code == 0
    (ending,) = run_ranks(1, dsmath, ["train", str(run_file), "--set", "schedule.peak_learning_rate=1e30"])
    assert ending.code == 70
    assert "the loss or the gradient is not finite" in ending.err
    assert "Traceback" not in ending.err
    last_step = len(rows_of(tmp_path / "run"))
    assert 2 <= last_step < 9
    saved = {folder.name for folder in (tmp_path / "run" / "checkpoints").glob("step_*")}
    assert saved == {f"step_{step}" for step in range(1, last_step + 1)}


WORLD_COLLECTIVES = (
    *("all_reduce", "all_gather", "all_gather_into_tensor", "all_gather_object", "barrier", "broadcast", "gather"),
    *("broadcast_object_list", "reduce", "reduce_scatter_tensor", "scatter", "all_to_all_single"),
)


def count_exchanges_of_all_ranks(run: RunConfig) -> Counter[str]:
    """The calls of torch.distributed's collectives on the world group while the run trains on this rank."""
    import torch.distributed as dist

    counts: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        collective = getattr(dist, name)

        def call(*arguments: Any, **named: Any) -> Any:
            groups = [value for value in (*arguments, *named.values()) if isinstance(value, dist.ProcessGroup)]
            counts[name] += groups in ([], [dist.group.WORLD])
            return collective(*arguments, **named)

        return call

    for name in WORLD_COLLECTIVES:
        setattr(dist, name, counted(name))
    train_run(run)
    return counts


def test_an_ordinary_step_has_two_exchanges_of_all_ranks(inputs: Path, tmp_path: Path) -> None:
    """The sums of losses, norm and hash; and the agreement. Validation and saves come after the last step only."""
    counts = []
    for steps in (3, 7):
        ordinary = {"schedule__steps": steps, "checkpoint__every_steps": 0, "validation__every_steps": 0}
        counts.append(run_ranks(2, count_exchanges_of_all_ranks, small_run(inputs, tmp_path / f"{steps}", **ordinary)))
    for fewer, more in zip(*counts, strict=True):
        assert more - fewer == {"all_reduce": 2 * (7 - 3)}
