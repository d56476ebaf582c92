"""Training continues while a checkpoint is written; if that fails, the previous checkpoint is still there."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from megatron_dsmath.checkpoint import store
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.fault_injection import POINTS
from tests.support.corpora import small_run, write_run_file
from tests.support.ranks import run_ranks
from tests.training.ranks import (
    Ending,
    dsmath,
    numbers_of,
    rows_of,
    status_of,
    train_run,
    with_fault,
)

SAVED = ["LATEST", "step_6", "step_9"]  # saves after steps 3, 6 and 9, and keeps two
IN_A_SAVE = [point for point in POINTS if point.startswith(("checkpoint.", "writer."))]


def checkpoints_of(output: Path) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


# --- while it is written --------------------------------------------------------------------------------------------


def train_while_the_writer_is_stopped(run: RunConfig) -> list[str]:
    """The writer of this rank stops inside its first file, and is resumed after step 5."""
    seen: list[str] = []

    def resume_writer() -> None:
        metrics = Path(run.output) / "metrics.jsonl"
        while not metrics.exists() or len(rows_of(Path(run.output))) < 5:
            time.sleep(0.01)
        seen.extend(checkpoints_of(Path(run.output)))
        (writer,) = (child for child in psutil.Process().children() if "checkpoint.writer" in " ".join(child.cmdline()))
        while writer.status() != psutil.STATUS_STOPPED:  # steps may be faster than it is
            time.sleep(0.01)
        writer.resume()

    resuming = threading.Thread(target=resume_writer)
    resuming.start()
    with_fault("stop:writer.inside_file:count=1", train_run, run)
    resuming.join()
    return seen


@pytest.mark.parametrize("ranks", [1, 2])
def test_training_continues_while_a_checkpoint_is_written_and_the_next_save_waits_for_it(
    ranks: int, inputs: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    (seen, *_) = run_ranks(ranks, train_while_the_writer_is_stopped, small_run(inputs, tmp_path))
    assert [name.partition("-")[0] for name in seen] == ["step_3.incomplete"]
    assert checkpoints_of(tmp_path) == SAVED
    assert numbers_of(rows_of(tmp_path)) == numbers_of(rows_of(undisturbed("data 2" if ranks == 2 else "one process")))


def train_and_look_for_the_writers_memory(run: RunConfig) -> tuple[int, int]:
    """How many writers there were, and the bytes of the staging buffer."""
    from megatron_dsmath.checkpoint import background_writer

    opened = []
    open_one = background_writer.BackgroundWriter.__init__

    def counted(self: background_writer.BackgroundWriter, size_bytes: int) -> None:
        opened.append(size_bytes)
        open_one(self, size_bytes)

    background_writer.BackgroundWriter.__init__ = counted  # type: ignore[method-assign]
    train_run(run)
    return len(opened), opened[0]


def test_one_process_and_one_buffer_of_the_size_of_the_file_serve_all_saves(inputs: Path, tmp_path: Path) -> None:
    ((writers, size_bytes),) = run_ranks(1, train_and_look_for_the_writers_memory, small_run(inputs, tmp_path))
    shard = tmp_path / "checkpoints" / "step_9" / "shards" / "__0_0.distcp"
    assert (writers, size_bytes) == (1, shard.stat().st_size)


# --- when it cannot be written --------------------------------------------------------------------------------------


def dsmath_with_fault(fault: str, arguments: list[str]) -> Ending:
    ending: Ending = with_fault(fault, dsmath, arguments)
    return ending


FULL = [
    (1, "checkpoint.begun"),
    (2, "writer.inside_file"),
    (1, "writer.before_sync"),
    (2, "checkpoint.before_manifest"),
]


@pytest.mark.parametrize(("ranks", "point"), FULL)
def test_a_full_disk_is_one_clear_error_and_leaves_the_previous_checkpoint(
    ranks: int, point: str, inputs: Path, tmp_path: Path
) -> None:
    run_file, output = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml"), tmp_path / "run"
    endings = run_ranks(ranks, dsmath_with_fault, f"full:{point}:rank=0:count=2", ["train", str(run_file)])
    said = "".join(ending.err for ending in endings)
    assert said.count("error[output]: the output cannot be written") == 1
    assert "No space left on device" in said
    assert "bytes free" in said
    assert "Traceback" not in said
    assert [ending.code for ending in endings] == [78] * ranks
    assert checkpoints_of(output) == ["LATEST", "step_3"]
    store.verify(output / "checkpoints" / "step_3")
    assert (status_of(output)["state"], status_of(output)["exit_code"]) == ("refused", 78)


def test_a_writer_that_dies_is_one_clear_error_and_leaves_the_previous_checkpoint(inputs: Path, tmp_path: Path) -> None:
    run_file, output = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml"), tmp_path / "run"
    endings = run_ranks(2, dsmath_with_fault, "kill:writer.inside_file:rank=1:count=2", ["train", str(run_file)])
    said = "".join(ending.err for ending in endings)
    assert said.count("error[internal]: the process that writes checkpoints has ended") == 1
    assert "SIGKILL" in said
    assert [ending.code for ending in endings] == [70, 70]  # a restart helps
    assert checkpoints_of(output) == ["LATEST", "step_3"]
    assert [ending.code for ending in run_ranks(2, dsmath, ["train", str(run_file)])] == [0, 0]
    assert checkpoints_of(output) == SAVED


# --- killed at every point of a save --------------------------------------------------------------------------------


def train_until_the_fault(run: RunConfig, fault: str) -> None:
    """Killed where the fault says; where that is the writer, this rank dies with it, as when a machine is gone."""
    with_fault(fault, train_run_or_die, run)


def train_run_or_die(run: RunConfig) -> None:
    from megatron_dsmath.errors import OutputError

    try:
        train_run(run)
    except OutputError:
        os._exit(1)


def dies_and_continues(layout: str, ranks: int, rank: int, point: str, inputs: Path, output: Path) -> None:
    overrides = {} if layout != "tensor 2 with sequence" else {"parallel__tensor": 2, "parallel__sequence": True}
    run = small_run(inputs, output, **overrides)
    count = 1 if point == "checkpoint.pruning" else 2  # the third save is the first to delete one
    with pytest.raises(RuntimeError, match=r"died|failed"):
        run_ranks(ranks, train_until_the_fault, run, f"kill:{point}:rank={rank}:count={count}")
    assert store.newest_checkpoint(output / "checkpoints") is not None
    run_ranks(ranks, train_run, run)
    assert checkpoints_of(output) == SAVED
    for name in SAVED[1:]:
        store.verify(output / "checkpoints" / name)


@pytest.mark.parametrize("point", ["checkpoint.copied", "writer.inside_file", "checkpoint.before_rename"])
def test_a_kill_inside_a_save_leaves_no_trace(
    point: str, inputs: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    dies_and_continues("one process", 1, 0, point, inputs, tmp_path)
    assert numbers_of(rows_of(tmp_path)) == numbers_of(rows_of(undisturbed("one process")))


@pytest.mark.long
@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("point", IN_A_SAVE)
@pytest.mark.parametrize("layout", ["data 2", "tensor 2 with sequence"])
def test_a_kill_of_any_rank_at_any_point_of_a_save_leaves_no_trace(
    layout: str, point: str, rank: int, inputs: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    if rank and point not in ("checkpoint.copying", "checkpoint.copied") and not point.startswith("writer."):
        pytest.skip("rank 0 alone comes by there")
    dies_and_continues(layout, 2, rank, point, inputs, tmp_path)
    assert numbers_of(rows_of(tmp_path)) == numbers_of(rows_of(undisturbed(layout)))
