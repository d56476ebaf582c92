"""`dsmath evaluate` on a small random LLaMA: from weights on the disk to results."""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_dsmath import cli
from megatron_dsmath.checkpoint.from_huggingface import import_folder
from megatron_dsmath.errors import EXIT_REFUSED
from megatron_dsmath.evaluation.protocol import FOLDER
from megatron_dsmath.supervision.lock import hold_evaluation
from tests.checkpoint.llama import write_llama_with_tokenizer
from tests.evaluation.scripted import rows_of, write_problems

PROBLEMS = [{"question": "fox" + " dog" * count, "answer": count} for count in range(5)]


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    write_problems(tmp_path / "problems.jsonl", PROBLEMS)
    write_llama_with_tokenizer(tmp_path / "hf", max_position_embeddings=256)
    import_folder(tmp_path / "hf", tmp_path / "checkpoint", gate=False)
    text = (FOLDER / "instruct-cot.yaml").read_text(encoding="utf-8").replace("text: ", f"text: {FOLDER}/")
    (tmp_path / "short.yaml").write_text(text.replace("new_tokens: 1024", "new_tokens: 24"), encoding="utf-8")
    common = ["--data", str(tmp_path), "--tasks", "problems.jsonl", "--protocol", str(tmp_path / "short.yaml")]
    return ["evaluate", *common, "--batch", "2"]


def test_a_checkpoint_a_folder_and_transformers_give_the_same_rows(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    ways = {"checkpoint": ["--model", "checkpoint"], "own": ["--model", "hf"]}
    ways["transformers"] = ["--model", "hf", "--backend", "transformers"]
    for name, (flag, model, *others) in ways.items():
        out = tmp_path / "out" / name
        assert cli.main([*arguments, flag, str(tmp_path / model), *others, "--out", str(out)]) == 0
        assert "this model, strict grader" in capsys.readouterr().out
        assert (out / "report.html").is_file()
    rows = {name: rows_of(tmp_path / "out" / name) for name in ways}
    assert rows["checkpoint"] == rows["own"] == rows["transformers"]
    assert len(rows["own"]) == 5 and all(row["new_tokens"] for row in rows["own"])


def test_samples_are_voted_on_and_printed_as_json(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = ["--model", str(tmp_path / "hf")], ["--out", str(tmp_path / "out")]
    assert cli.main([*arguments, *model, *out, "--samples", "3", "--limit", "2", "--json"]) == 0
    results = json.loads(capsys.readouterr().out)
    assert results["tasks"]["problems"]["pass_at"].keys() == {"1", "2"}
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 6 and len({row["output"] for row in rows}) > 2, "samples differ"


class Record:
    """The part of a W&B run that is used."""

    def __init__(self) -> None:
        self.logged: dict[str, Any] = {}

    def define_metric(self, name: str, step_metric: str) -> None:
        pass

    def log(self, values: dict[str, Any], step: int) -> None:
        self.logged |= values

    def finish(self) -> None:
        pass


def test_the_wandb_flag_sends_results_and_every_problem(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record, model = Record(), ["--model", str(tmp_path / "hf"), "--out", str(tmp_path / "out")]
    module = SimpleNamespace(init=lambda **_: record, Settings=SimpleNamespace, Table=SimpleNamespace)
    monkeypatch.setitem(sys.modules, "wandb", module)
    assert cli.main([*arguments, *model]) == 0
    assert record.logged == {}
    assert cli.main([*arguments, *model, "--wandb", "test"]) == 0
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert record.logged["eval/problems/accuracy"] == results["tasks"]["problems"]["accuracy"]
    outputs = [row["output"] for row in rows_of(tmp_path / "out")]
    assert [line[2] for line in record.logged["eval/problems/problems"].data] == outputs
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    assert cli.main([*arguments, *model, "--wandb", "test"]) == 0
    assert "W&B is off for this run" in capsys.readouterr().err


def test_a_second_job_is_refused_with_the_owner_of_the_directory(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with hold_evaluation(out):
        assert cli.main([*arguments, "--model", str(tmp_path / "hf"), "--out", str(out)]) == EXIT_REFUSED
        said = capsys.readouterr().err
        assert "another job has the evaluation's directory" in said
        assert f"process {os.getpid()} on {socket.gethostname()}" in said
        assert "set --out to another directory" in said
        assert [path.name for path in out.iterdir()] == ["LOCK"]
    assert cli.main([*arguments, "--model", str(tmp_path / "hf"), "--out", str(out)]) == 0


def test_a_mistake_is_one_error_before_any_weight_is_read(
    tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    model = ["--model", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    assert cli.main([*arguments, *model, "--mode", "cot"]) == EXIT_REFUSED
    assert "--protocol, --mode" in capsys.readouterr().err
    assert cli.main([*arguments, *model]) == EXIT_REFUSED
    assert "nowhere" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
