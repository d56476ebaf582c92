from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from megatron_dsmath.errors import ConfigError, DataError
from megatron_dsmath.report.record import Checkpoint, Series, read_run, smoothing_window
from tests.report.conftest import RUN, WriteRun, row


def test_a_metric_has_a_point_for_each_step_that_measured_it(write_run: WriteRun) -> None:
    run = read_run(write_run())
    steps, losses = run.series("loss")
    assert (steps.tolist(), losses.tolist()) == ([1, 2, 3, 4], [10.0, 5.0, 10 / 3, 2.5])
    steps, losses = run.series("loss_by_corpus", "code")  # step 2 had none of its tokens
    assert (steps.tolist(), losses.tolist()) == ([1, 3, 4], [13.0, 13 / 3, 3.25])
    assert run.series("validation_loss").steps.tolist() == [4]
    assert run.series("mfu").steps.tolist() == []


def test_values_that_are_not_finite_are_left_out(write_run: WriteRun) -> None:
    run = read_run(write_run(rows=[row(1), row(2, loss=float("nan")), row(3, loss=float("inf")), row(4, loss="x")]))
    assert run.series("loss").steps.tolist() == [1]
    assert run.last("loss") == 10.0


def test_weights_are_shares(write_run: WriteRun) -> None:
    assert read_run(write_run()).weights() == {"math": 0.75, "code": 0.25}


def test_corpora_that_are_only_in_the_metrics_come_last(write_run: WriteRun) -> None:
    run = read_run(write_run(rows=[row(1, loss_by_corpus={"extra": 1.0, "math": 2.0})]))
    assert run.corpora() == ["math", "code", "extra"]


@pytest.mark.parametrize("tail", ['{"step": 5, "lo', '{"step": 5}', "\x00\x00"])
def test_a_last_line_without_its_end_is_left_out_and_reported(write_run: WriteRun, tail: str) -> None:
    run = read_run(write_run(tail=tail))
    assert [each["step"] for each in run.rows] == [1, 2, 3, 4]
    assert run.unfinished_row
    assert not read_run(write_run("whole")).unfinished_row


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"step": "5"}', '{"step": 4}', "", "[" * 100_000])
def test_a_line_that_is_not_the_next_step_is_refused_with_its_number(write_run: WriteRun, line: str) -> None:
    with pytest.raises(DataError) as refusal:
        read_run(write_run(tail=line + "\n"))
    assert str(refusal.value.where).endswith("metrics.jsonl:5")


def test_a_folder_without_run_yaml_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a run's directory") as refusal:
        read_run(tmp_path)
    assert refusal.value.where == tmp_path / "run.yaml"


@pytest.mark.parametrize("content", [None, "", '{"step": 1'])
def test_a_run_without_a_complete_row_is_refused(write_run: WriteRun, content: str | None) -> None:
    folder = write_run()
    (folder / "metrics.jsonl").unlink()
    if content is not None:
        (folder / "metrics.jsonl").write_text(content)
    with pytest.raises(DataError, match="no metrics") as refusal:
        read_run(folder)
    assert refusal.value.where == folder / "metrics.jsonl"


def test_a_checkpoint_is_whole_where_its_manifest_can_be_read(write_run: WriteRun) -> None:
    folder = write_run()
    for step, manifest in ((20, "{}"), (100, None), (3, "torn {")):
        saved = folder / "checkpoints" / f"step_{step}"
        (saved / "shards").mkdir(parents=True)
        (saved / "shards" / "weights").write_bytes(b"12345")
        if manifest is not None:
            (saved / "MANIFEST.json").write_text(manifest)
    (folder / "checkpoints" / "step_7.partial").mkdir()
    assert read_run(folder).checkpoints == [
        Checkpoint(step=3, size_bytes=5 + 6, whole=False),
        Checkpoint(step=20, size_bytes=5 + 2, whole=True),
        Checkpoint(step=100, size_bytes=5, whole=False),
    ]


def test_status_and_starts_are_optional_and_may_be_torn(write_run: WriteRun) -> None:
    folder = write_run()
    assert (read_run(folder).status, read_run(folder).starts) == ({}, [])
    (folder / "logs").mkdir()
    (folder / "logs" / "starts.jsonl").write_text('{"world_size": 2}\n{"world')
    (folder / "STATUS.json").write_text(json.dumps({"state": "done"}))
    assert (read_run(folder).status, read_run(folder).starts) == ({"state": "done"}, [{"world_size": 2}])


def test_settings_are_found_by_their_dotted_key(write_run: WriteRun) -> None:
    run = read_run(write_run())
    assert run.setting("schedule.steps") == RUN["schedule"]["steps"]
    assert run.setting("schedule.no.such") is None


def test_a_smoothed_value_is_the_mean_of_the_last_fortieth_of_the_run() -> None:
    values = [float(step * step) for step in range(1, 121)]  # a window of 3
    smooth = Series(np.arange(1, 121), np.array(values)).smoothed()
    assert smooth[0] == 1.0
    assert smooth[1] == (1 + 4) / 2
    assert smooth[119] == pytest.approx((118**2 + 119**2 + 120**2) / 3, rel=1e-12)  # sums of squares are exact in fp64


@pytest.mark.parametrize(("measurements", "steps"), [(0, 1), (1, 1), (79, 1), (80, 2), (2000, 50), (47_684, 50)])
def test_the_window_grows_with_the_run_up_to_fifty_steps(measurements: int, steps: int) -> None:
    assert smoothing_window(measurements) == steps


def test_achieved_shares_are_tokens_so_far_over_their_sum(write_run: WriteRun) -> None:
    run = read_run(write_run(rows=[row(1), row(2, tokens_by_corpus={"math": 900, "code": 300, "extra": 0})]))
    assert run.tokens_by_corpus() == {"math": 900, "code": 300}
    assert run.achieved_shares() == {"math": 0.75, "code": 0.25}


def test_shares_of_conversations_add_up_to_one_in_each_grouping(write_run: WriteRun) -> None:
    names = {"kind/cot": 3, "kind/tool": 1, "language/en": 4}
    rows = [row(1, loss_by_corpus=dict.fromkeys(names, 1.0), tokens_by_corpus=names)]
    shares = read_run(write_run(rows=rows)).achieved_shares()
    assert shares == {"kind/cot": 0.75, "kind/tool": 0.25, "language/en": 1.0}


def test_without_token_counts_there_are_no_shares(write_run: WriteRun) -> None:
    run = read_run(write_run(rows=[row(1, tokens_by_corpus=None)]))
    assert run.achieved_shares() == {}
