from __future__ import annotations

import json
from pathlib import Path

import pytest

from megatron_dsmath.errors import ConfigError, DataError
from megatron_dsmath.report.record import Checkpoint, read_run
from tests.report.conftest import RUN, WriteRun, row


def test_a_metric_has_a_point_for_each_step_that_measured_it(write_run: WriteRun) -> None:
    run = read_run(write_run())
    steps, losses = run.series("loss")
    assert (steps.tolist(), losses.tolist()) == ([1, 2, 3, 4], [10.0, 5.0, 10 / 3, 2.5])
    steps, losses = run.series("loss_by_corpus", "code")  # step 2 had none of its tokens
    assert (steps.tolist(), losses.tolist()) == ([1, 3, 4], [13.0, 13 / 3, 3.25])
    assert run.series("validation_loss").steps.tolist() == [4]
    assert run.series("mfu").steps.tolist() == []


def test_numbers_that_are_not_finite_are_no_points(write_run: WriteRun) -> None:
    run = read_run(write_run(rows=[row(1), row(2, loss=float("nan")), row(3, loss=float("inf")), row(4, loss="x")]))
    assert run.series("loss").steps.tolist() == [1]
    assert run.last("loss") == 10.0


def test_weights_are_shares(write_run: WriteRun) -> None:
    assert read_run(write_run()).weights() == {"math": 0.75, "code": 0.25}


def test_corpora_that_only_the_metrics_name_come_last(write_run: WriteRun) -> None:
    run = read_run(write_run(rows=[row(1, loss_by_corpus={"extra": 1.0, "math": 2.0})]))
    assert run.corpora() == ["math", "code", "extra"]


@pytest.mark.parametrize("tail", ['{"step": 5, "lo', '{"step": 5}', "\x00\x00"])
def test_a_last_line_without_its_end_is_left_out_and_said(write_run: WriteRun, tail: str) -> None:
    run = read_run(write_run(tail=tail))
    assert [each["step"] for each in run.rows] == [1, 2, 3, 4]
    assert run.unfinished_row
    assert not read_run(write_run("whole")).unfinished_row


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"step": "5"}', '{"step": 4}', "", "[" * 100_000])
def test_any_other_line_that_is_no_next_step_is_refused_by_its_number(write_run: WriteRun, line: str) -> None:
    with pytest.raises(DataError) as refusal:
        read_run(write_run(tail=line + "\n"))
    assert str(refusal.value.where).endswith("metrics.jsonl:5")


def test_a_folder_without_run_yaml_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run's directory") as refusal:
        read_run(tmp_path)
    assert refusal.value.where == tmp_path / "run.yaml"


@pytest.mark.parametrize("content", [None, "", '{"step": 1'])
def test_a_run_without_a_whole_row_is_refused(write_run: WriteRun, content: str | None) -> None:
    folder = write_run()
    (folder / "metrics.jsonl").unlink()
    if content is not None:
        (folder / "metrics.jsonl").write_text(content)
    with pytest.raises(DataError, match="no metrics") as refusal:
        read_run(folder)
    assert refusal.value.where == folder / "metrics.jsonl"


def test_a_checkpoint_is_whole_once_its_manifest_can_be_read(write_run: WriteRun) -> None:
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


def test_settings_are_reached_by_their_dotted_key(write_run: WriteRun) -> None:
    run = read_run(write_run())
    assert run.setting("schedule.steps") == RUN["schedule"]["steps"]
    assert run.setting("schedule.no.such") is None
