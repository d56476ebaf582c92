"""Problems answered during training: as a checkpoint of that step would, and without a trace in the training."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath import cli
from megatron_dsmath.checkpoint.weight_reader import WeightReader
from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.errors import EXIT_REFUSED
from megatron_dsmath.evaluation.protocol import FOLDER
from megatron_dsmath.training.evaluating import Evaluation
from megatron_dsmath.training.run_directory import RunDirectory
from megatron_dsmath.training.train import train
from tests.data.sft.sets import small_set
from tests.evaluation import scripted
from tests.support.conversations import LENGTH, sft_run, write_sft_file
from tests.support.ranks import run_ranks
from tests.training.ranks import Ending, Row, dsmath, numbers_of, read_rows, rows_of

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "TP2": (2, {"parallel__tensor": 2, "parallel__sequence": True}),
    "PP2, two virtual stages": (2, {"parallel__pipeline": 2, "parallel__virtual_stages": 2}),
    "DP2, overlapped": (2, {"parallel__overlap_communication": True}),
}
STEPS = {"schedule__steps": 2, "schedule__peak_learning_rate": 1e-4}
PROBLEMS = 20  # two batches: one for each of two ranks


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A set to train on, problems, and a protocol that is content with few tokens."""
    path = tmp_path_factory.mktemp("evaluating")
    small_set(path, sequence_length=LENGTH)
    rows = [{"question": "fox" + " dog" * number, "answer": number} for number in range(PROBLEMS)]
    scripted.write_problems(path / "problems.jsonl", rows)
    text = (FOLDER / "instruct-cot.yaml").read_text(encoding="utf-8").replace("text: ", f"text: {FOLDER}/")
    (path / "short.yaml").write_text(text.replace("new_tokens: 1024", "new_tokens: 12"), encoding="utf-8")
    return path


def trained(folder: Path, output: Path, ranks: int, *flags: str, **overrides: Any) -> list[Ending]:
    """`dsmath train` on that set, evaluated as `flags` say."""
    run_file = write_sft_file(folder, output, output.with_suffix(".yaml"), **overrides)
    endings: list[Ending] = run_ranks(ranks, dsmath, ["train", str(run_file), *flags])
    assert [ending.code for ending in endings] == [0] * ranks, endings[0].err
    return endings


def flags_of(folder: Path, every: int) -> list[str]:
    protocol = f"--evaluate-protocol={folder / 'short.yaml'}"
    return [f"--evaluate={folder / 'problems.jsonl'}", f"--evaluate-every={every}", protocol]


@pytest.fixture(scope="module")
def alone(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """What one process answers after its last step."""
    output = tmp_path_factory.mktemp("alone") / "run"
    trained(folder, output, 1, *flags_of(folder, 5), **STEPS)
    return read_rows(output / "logs/evaluation_step_2.jsonl")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_answers_as_its_checkpoint_and_as_one_process(
    layout: str, folder: Path, alone: list[Row], tmp_path: Path
) -> None:
    ranks, overrides = LAYOUTS[layout]
    trained(folder, tmp_path / "run", ranks, *flags_of(folder, 5), **STEPS, **overrides)
    protocol = ["--protocol", str(folder / "short.yaml"), "--data", str(folder), "--tasks", "problems.jsonl"]
    assert cli.main(["evaluate", "--model", str(tmp_path / "run"), *protocol, "--out", str(tmp_path / "out")]) == 0
    live = read_rows(tmp_path / "run/logs/evaluation_step_2.jsonl")
    assert live == scripted.rows_of(tmp_path / "out") == alone
    assert len(live) == PROBLEMS and len({row["output"] for row in live}) > 1
    figures = json.loads((tmp_path / "out/results.json").read_text())["tasks"]["problems"]
    first, last = rows_of(tmp_path / "run")
    assert "evaluation_accuracy" not in first
    assert (last["evaluation_accuracy"], last["evaluation_tool_calls"]) == (figures["accuracy"], 0)


def test_a_run_that_is_evaluated_trains_bit_for_bit_as_one_that_is_not(folder: Path, tmp_path: Path) -> None:
    trained(folder, tmp_path / "evaluated", 1, *flags_of(folder, 2), schedule__steps=5, precision="bf16")
    trained(folder, tmp_path / "not", 1, schedule__steps=5, precision="bf16")
    rows, others = (numbers_of(rows_of(tmp_path / name)) for name in ("evaluated", "not"))
    assert [row["step"] for row in rows if "evaluation_accuracy" in row] == [2, 4, 5]
    figures = ("evaluation_accuracy", "evaluation_tool_calls")
    assert [{name: row[name] for name in row if name not in figures} for row in rows] == others


class Broken:
    """An evaluation that goes wrong on the last rank."""

    every_steps, flags = 1, ()

    def rows(self, weights: WeightReader, rank: int, ranks: int) -> list[Row]:
        if rank == ranks - 1:
            raise OSError("the disk is full of scratch files")
        return [{"row": 0}]

    def figures(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        return {"accuracy": 1.0}


def train_with(run: RunConfig, evaluation: Evaluation) -> str:
    """What the run says on stderr."""
    said = io.StringIO()
    RunDirectory(Path(run.output)).create()
    with contextlib.redirect_stderr(said):
        train(run, lambda: False, evaluation=evaluation)
    return said.getvalue()


def test_a_failed_evaluation_is_reported_and_the_run_continues(folder: Path, tmp_path: Path) -> None:
    said, nothing = run_ranks(2, train_with, sft_run(folder, tmp_path, **STEPS), Broken())
    assert [row["step"] for row in rows_of(tmp_path)] == [1, 2]
    assert not any("evaluation_accuracy" in row for row in rows_of(tmp_path))
    assert "the evaluation after step 1 failed: OSError: the disk is full of scratch files" in said
    assert "failed" not in nothing


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--evaluate-every=5"], "--evaluate FILE.jsonl beside it"),
        (["--evaluate=nowhere.jsonl"], "nowhere.jsonl"),
        (["--evaluate=gsm8k"], "FILE.jsonl"),
        (["--evaluate={folder}/problems.jsonl", "--evaluate-every=0"], "--evaluate-every"),
        (["--evaluate={folder}/problems.jsonl", "--evaluate-protocol=mine"], "no such protocol"),
    ],
)
def test_what_cannot_be_evaluated_is_refused_before_training(
    flags: list[str], said: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_file = write_sft_file(folder, tmp_path / "run", tmp_path / "run.yaml")
    code = cli.main(["train", str(run_file), "--check", *(flag.format(folder=folder) for flag in flags)])
    assert code == EXIT_REFUSED
    assert said in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
