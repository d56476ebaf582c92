"""A recipe from pretraining to scores, killed in every stage, against the same commands by hand without a kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from megatron_dsmath.checkpoint.manifest import read_manifest
from megatron_dsmath.errors import DsmathError, Refusals
from megatron_dsmath.recipe.recipe_mistakes import load_stages
from megatron_dsmath.recipe.run_stages import run_stages
from megatron_dsmath.recipe.stage_states import stage_states
from tests.recipe.toy import NAMES, Toy, commands_by_hand, results_of
from tests.support.ranks import run_ranks
from tests.training.ranks import dsmath

PATIENCE_SECONDS = 120.0


@pytest.fixture(scope="module")
def by_hand(inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Toy:
    toy = Toy(inputs, tmp_path_factory.mktemp("by_hand"))
    for command in commands_by_hand(toy):
        (ending,) = run_ranks(1, dsmath, list(command), timeout_seconds=PATIENCE_SECONDS)
        assert ending.code == 0, ending.err
    return toy


@pytest.fixture
def toy(inputs: Path, tmp_path: Path) -> Toy:
    return Toy(inputs, tmp_path)


def start(toy: Toy, fault: str = "") -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DSMATH_FAULT": fault}
    return subprocess.Popen(
        [sys.executable, "-m", "megatron_dsmath", "recipe", str(toy.path)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(true: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not true():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.005)


def kill_everything(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the recipe's process group; the stage, which has its own, must die with it."""
    stages = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    _, alive = psutil.wait_procs(stages, timeout=10)
    assert alive == []


def states_of(toy: Toy) -> dict[str, str]:
    return {name: str(state) for name, state in stage_states(load_stages(toy.path)).items()}


def has(toy: Toy, pattern: str) -> Callable[[], bool]:
    return lambda: any(toy.folder.glob(pattern))


def kill_in_stage(toy: Toy, name: str, pattern: str) -> dict[str, str]:
    """The states after a kill at the moment when `pattern` exists.

    A stage may end before the kill comes: then its output is deleted, and it is killed again.
    """
    for _ in range(5):
        process = start(toy, fault="delay:step.begin:step=4,5")  # after the save of step 3
        wait_for(has(toy, pattern), process)
        kill_everything(process)
        states = states_of(toy)
        if states[name] != "done":
            return states
        for path in toy.folder.glob(f"{name}*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        toy.write()
    raise AssertionError(f"{name} ended before each kill")


def test_a_recipe_killed_in_every_stage_ends_like_the_commands_by_hand(toy: Toy, by_hand: Toy) -> None:
    # What a stage leaves while it works, and the state that the plan shows after the kill.
    moments = {
        "base": ("base/checkpoints/step_3", "at step 3 of 6"),
        "base_model": ("base_model.incomplete-*", "to do"),
        "set": ("set*.partial", "to do"),
        "tuned": ("tuned/checkpoints/step_3", "at step 3 of 6"),
        "tuned_model": ("tuned_model.incomplete-*", "to do"),
        "scores": ("scores/outputs/problems.jsonl", "after "),
    }
    for number, (name, (pattern, state)) in enumerate(moments.items()):
        states = kill_in_stage(toy, name, pattern)
        assert [states[earlier] for earlier in NAMES[:number]] == ["done"] * number
        assert states[name].startswith(state), name
    process = start(toy)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, output
    assert set(states_of(toy).values()) == {"done"}
    assert results_of(toy.folder) == results_of(by_hand.folder)


def test_sigterm_saves_the_run_and_exits_with_75_and_the_recipe_continues(toy: Toy, by_hand: Toy) -> None:
    toy.stages = toy.stages[:1]
    toy.write()
    process = start(toy, fault="delay:step.begin:step=2")
    wait_for(lambda: any('"step": 2' in file.read_text() for file in toy.folder.glob("base/metrics.jsonl")), process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 75, output
    assert "the recipe was asked to stop" in output
    assert states_of(toy) == {"base": "at step 3 of 6"}
    process = start(toy)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0, output
    ours, theirs = (read_manifest(made.folder / "base/checkpoints/step_6") for made in (toy, by_hand))
    assert ours.files == theirs.files


def test_stages_done_by_hand_are_not_run_again(by_hand: Toy, capfd: pytest.CaptureFixture[str]) -> None:
    before = results_of(by_hand.folder)
    times = {path: path.stat().st_mtime_ns for path in by_hand.folder.rglob("*") if path.is_file()}
    assert run_stages(load_stages(by_hand.path)) == 0
    assert capfd.readouterr().out.splitlines() == [f"recipe: {name}: done" for name in NAMES]
    assert {path: path.stat().st_mtime_ns for path in by_hand.folder.rglob("*") if path.is_file()} == times
    assert results_of(by_hand.folder) == before


def refusals(toy: Toy) -> list[DsmathError]:
    with pytest.raises(DsmathError) as caught:
        run_stages(load_stages(toy.write()))
    return list(caught.value.errors) if isinstance(caught.value, Refusals) else [caught.value]


def test_missing_inputs_and_a_layout_for_other_ranks_are_refused_before_the_first_stage(toy: Toy) -> None:
    (toy.folder / "problems.jsonl").unlink()
    (toy.folder / "data/code.idx").unlink()
    toy.runs["tuned"]["parallel"]["tensor"] = 2
    found = refusals(toy)
    assert [str(error.where) for error in found] == [
        str(toy.folder / "data/code.idx"),
        "parallel.tensor, parallel.pipeline",
        str(toy.folder / "problems.jsonl"),
    ]
    assert not (toy.folder / "base").exists()


@pytest.fixture
def failing(toy: Toy) -> Iterator[Toy]:
    toy.stages = toy.stages[:1]
    toy.write()
    yield toy


@pytest.mark.parametrize(("fault", "code"), [("raise:setup.begin", 70), ("kill:setup.begin", 70)])
def test_the_exit_code_of_a_failed_stage_is_that_of_the_recipe(failing: Toy, fault: str, code: int) -> None:
    process = start(failing, fault)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == code, output
    assert "base" in output


def test_a_refused_stage_ends_the_recipe_with_78(failing: Toy) -> None:
    (failing.folder / "data/code.bin").write_bytes(b"")  # found when the run opens its data
    process = start(failing)
    output, _ = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 78, output
    assert "recipe: base: exit code 78" in output
