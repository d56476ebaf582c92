"""The steps at which a run saves, the checkpoints it keeps, and those it refuses to continue from."""

from __future__ import annotations

import json
import re
import shutil
import time
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from megatron_dsmath.config.sections import RunConfig
from tests.support.corpora import small_run, write_corpora, write_run_file
from tests.support.ranks import run_ranks
from tests.support.small_tokenizer import write_small_tokenizer
from tests.training.ranks import Ending, Row, dsmath, rows_of, status_of, train_run, train_until_killed


def checkpoints_of(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def errors_in(*endings: Ending) -> list[str]:
    """The headline of every error shown by any rank."""
    return re.findall(r"^error\[.*", "".join(ending.err for ending in endings), re.MULTILINE)


RECORDS = {"STATUS.json", "attempts.jsonl", "LOCK"}  # of a run's starts and endings


class Contents(NamedTuple):
    """The files of a directory except the records of its starts and ends."""

    files: dict[str, bytes]

    @classmethod
    def of(cls, folder: Path) -> Contents:
        paths = (path for path in folder.rglob("*") if path.is_file() and path.name not in RECORDS)
        return cls({str(path.relative_to(folder)): path.read_bytes() for path in paths})


# --- when, and how many ---------------------------------------------------------------------------------------------


def test_the_newest_checkpoints_are_kept_and_the_last_step_is_one_of_them(inputs: Path, tmp_path: Path) -> None:
    run_ranks(1, train_run, small_run(inputs, tmp_path, schedule__steps=8, checkpoint__every_steps=2))
    assert checkpoints_of(tmp_path) == ["LATEST", "step_6", "step_8"]


def train_a_minute_a_step(run: RunConfig) -> None:
    """Every step takes a minute by the system's clock: a minute passes with each row of the metrics."""
    metrics, clock = Path(run.output) / "metrics.jsonl", time.monotonic

    def slow_clock() -> float:
        return clock() + 60 * (len(rows_of(Path(run.output))) if metrics.exists() else 0)

    time.monotonic = slow_clock
    train_run(run)


def test_a_run_saves_when_so_many_minutes_have_passed_since_the_last_save(inputs: Path, tmp_path: Path) -> None:
    saving = {"checkpoint__every_steps": 0, "checkpoint__every_minutes": 1.5, "checkpoint__keep": 9}
    run_ranks(1, train_a_minute_a_step, small_run(inputs, tmp_path, schedule__steps=5, **saving))
    assert checkpoints_of(tmp_path) == ["LATEST", "step_2", "step_4", "step_5"]  # 5: the last step always is


# --- what cannot be written -----------------------------------------------------------------------------------------


def dsmath_on_a_disk_of(free_bytes: int, arguments: list[str]) -> Ending:
    shutil.disk_usage = lambda _: shutil._ntuple_diskusage(free_bytes, 0, free_bytes)  # type: ignore[attr-defined]
    return dsmath(arguments)


def test_a_disk_that_will_not_hold_the_checkpoint_is_noticed_before_anything_is_written(
    inputs: Path, tmp_path: Path
) -> None:
    run_file = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml", schedule__steps=3)
    (ending,) = run_ranks(1, dsmath_on_a_disk_of, 1_000_000, ["train", str(run_file)])
    assert (ending.code, errors_in(ending)) == (78, ["error[output]: the output does not fit"])
    assert checkpoints_of(tmp_path / "run") == []

    (ending,) = run_ranks(1, dsmath, ["train", str(run_file)])
    assert ending.code == 0
    saved = sum(path.stat().st_size for path in (tmp_path / "run/checkpoints/step_3/shards").iterdir())
    assert saved > 1_000_000  # so it was right to refuse


# --- what a run refuses to continue from ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two data-parallel processes that was killed after step 4; it had saved after step 3."""
    output = tmp_path_factory.mktemp("saved")
    with pytest.raises(RuntimeError, match="rank 0 died"):
        run_ranks(2, train_until_killed, small_run(inputs, output), 4)
    return output


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "another model": (
        {"model__ffn_hidden_size": 96},
        "error[checkpoint]: the weights belong to another model than the run's",
        "found:    ffn_hidden_size 88",
    ),
    "another form of the optimizer": (
        {"parallel__distributed_optimizer": False},
        "error[checkpoint]: the optimizer's state was saved in another form",
        "fix:      set parallel.distributed_optimizer: true",
    ),
}


@pytest.mark.parametrize("mistake", REFUSED)
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_that_does_not_fit_its_checkpoint_is_refused_in_one_error_and_changes_nothing(
    ranks: int, mistake: str, inputs: Path, saved: Path, tmp_path: Path
) -> None:
    overrides, headline, fact = REFUSED[mistake]
    output = shutil.copytree(saved, tmp_path / "run")
    before = Contents.of(output)
    run_file = write_run_file(inputs, output, tmp_path / "run.yaml", **overrides)
    endings = run_ranks(ranks, dsmath, ["train", str(run_file)])
    assert errors_in(*endings) == [headline]
    said = "".join(ending.err for ending in endings)
    assert fact in said
    assert "Traceback" not in said
    assert [ending.code for ending in endings] == [78] * ranks
    assert Contents.of(output) == before
    assert (status_of(output)["state"], status_of(output)["exit_code"]) == ("refused", 78)


def test_a_run_continues_in_another_precision_only_where_the_optimizer_keeps_fp32(inputs: Path, tmp_path: Path) -> None:
    for distributed, code in ((True, 0), (False, 78)):
        output = tmp_path / f"{distributed}"
        run = {"parallel__distributed_optimizer": distributed, "schedule__steps": 4}
        with pytest.raises(RuntimeError, match="rank 0 died"):
            run_ranks(1, train_until_killed, small_run(inputs, output, **run), 4)
        run_file = write_run_file(inputs, output, tmp_path / "run.yaml", precision="bf16", **run)
        (ending,) = run_ranks(1, dsmath, ["train", str(run_file)])
        assert ending.code == code
    assert errors_in(ending) == ["error[checkpoint]: the optimizer's state was saved in another precision"]
    assert "fix:      set precision: fp32" in ending.err


def test_a_run_with_another_tokenizer_than_its_checkpoint_s_is_refused(saved: Path, tmp_path: Path) -> None:
    others = tmp_path / "others"
    file = write_small_tokenizer(others / "tokenizer") / "tokenizer.json"
    other = json.loads(file.read_text(encoding="utf-8"))
    other["pre_tokenizer"]["add_prefix_space"] = True
    file.write_text(json.dumps(other), encoding="utf-8")
    write_corpora(others)
    output = shutil.copytree(saved, tmp_path / "run")
    (ending,) = run_ranks(1, dsmath, ["train", str(write_run_file(others, output, tmp_path / "run.yaml"))])
    assert ending.code == 78
    assert (
        errors_in(ending)[0] == "error[checkpoint]: data.tokenizer differs from the value that the run was trained with"
    )


def test_weights_alone_are_no_state_to_continue_from(inputs: Path, saved: Path, tmp_path: Path) -> None:
    folder, output = tmp_path / "hf", tmp_path / "run"
    for arguments in (
        ["export-hf", str(saved), "--out", str(folder)],
        ["import-hf", str(folder), "--out", str(output / "checkpoints" / "step_0")],
    ):
        assert run_ranks(1, dsmath, arguments)[0].code == 0
    (ending,) = run_ranks(1, dsmath, ["train", str(write_run_file(inputs, output, tmp_path / "run.yaml"))])
    assert errors_in(ending) == ["error[checkpoint]: the run cannot be continued from weights alone"]
    assert ending.code == 78


@pytest.mark.fault("R6")
def test_a_checkpoint_with_one_flipped_bit_is_refused_by_all_ranks_in_one_error(
    inputs: Path, saved: Path, tmp_path: Path
) -> None:
    output = shutil.copytree(saved, tmp_path / "run")
    shard = output / "checkpoints" / "step_3" / "shards" / "__0_0.distcp"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    run_file = write_run_file(inputs, output, tmp_path / "run.yaml")
    endings = run_ranks(2, dsmath, ["train", str(run_file)])
    assert errors_in(*endings) == ["error[checkpoint]: a file of the checkpoint differs from what was saved"]
    assert [ending.code for ending in endings] == [78, 78]
    assert status_of(output)["exit_code"] == 78


@pytest.mark.fault(
    "R15",
    injected="another layout when the run continues",
    where="2 ranks to TP2, PP2, one process",
    holds="losses within 1e-5",
)
@pytest.mark.parametrize("layout", [{"parallel__tensor": 2}, {"parallel__pipeline": 2}, {}], ids=str)
def test_a_run_continues_in_another_layout(
    layout: dict[str, Any], inputs: Path, saved: Path, one_process: list[Row], tmp_path: Path
) -> None:
    output = shutil.copytree(saved, tmp_path / "run")
    ranks = 2 if layout else 1
    run_ranks(ranks, train_run, small_run(inputs, output, **layout))
    ours, alone = ([row["loss"] for row in rows] for rows in (rows_of(output), one_process))
    assert ours == pytest.approx(alone, rel=1e-5)  # fp32 sums in another order
