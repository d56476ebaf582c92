"""W&B at arm's length: one record across restarts, and never a reason to stop."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from megatron_dsmath.training import weights_and_biases
from megatron_dsmath.training.metrics import METRICS, WANDB_NAMES, wandb_names
from megatron_dsmath.training.run_directory import RunDirectory
from megatron_dsmath.training.weights_and_biases import WeightsAndBiases, wandb_mode
from tests.support.corpora import write_run_file
from tests.support.ranks import run_ranks
from tests.training.ranks import Ending, dsmath, rows_of

KEY = "0123456789abcdef0123456789abcdef01234567"
ROW = {"step": 3, "loss": 2.5, "loss_by_corpus": {"mathematics": 2.0, "code": None}, "mfu": None}


class Record:
    """What `wandb.init` gives: remembers what it is told, and fails where it is asked to."""

    def __init__(self, failing: str | None) -> None:
        self.failing = failing
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.finished = False

    def define_metric(self, name: str, step_metric: str) -> None:
        self._fail_in("define_metric")

    def log(self, values: dict[str, float], step: int) -> None:
        self._fail_in("log")
        self.logged.append((step, values))

    def finish(self) -> None:
        self._fail_in("finish")
        self.finished = True

    def _fail_in(self, place: str) -> None:
        if place == self.failing:
            raise RuntimeError(f"no {place} today")


class StandIn:
    """The module `wandb` as far as it is used."""

    def __init__(self, failing: str | None = None) -> None:
        self.failing = failing
        self.calls: list[dict[str, Any]] = []
        self.records: list[Record] = []
        self.Settings = SimpleNamespace
        self.Table = SimpleNamespace

    def init(self, **arguments: Any) -> Record:
        if self.failing == "init":
            raise RuntimeError("no init today")
        self.calls.append(arguments)
        self.records.append(Record(self.failing))
        return self.records[-1]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Callable[..., StandIn]:
    def installed(failing: str | None = None) -> StandIn:
        module = StandIn(failing)
        monkeypatch.setitem(sys.modules, "wandb", module)
        return module

    return installed


@pytest.fixture
def directory(tmp_path: Path) -> RunDirectory:
    directory = RunDirectory(tmp_path / "run")
    directory.create()
    return directory


OFFLINE_RUN = {"tracking__wandb": "offline", "schedule__drops": []}


def offline_record(directory: RunDirectory) -> WeightsAndBiases | None:
    return WeightsAndBiases.start("test", "offline", directory, {"seed": 7})


def test_restarts_continue_one_record(wandb: Callable[..., StandIn], directory: RunDirectory) -> None:
    module = wandb()
    for _ in range(2):
        assert offline_record(directory) is not None
    first, second = module.calls
    assert first["id"] == second["id"] != ""
    assert (first["mode"], first["dir"], first["project"], first["name"]) == ("offline", directory.root, "test", "run")
    assert first["config"] == {"seed": 7}


def test_two_runs_are_two_records(wandb: Callable[..., StandIn], tmp_path: Path) -> None:
    module = wandb()
    for name in ("one", "other"):
        directory = RunDirectory(tmp_path / name)
        directory.create()
        offline_record(directory)
    first, second = module.calls
    assert first["id"] != second["id"]


def test_a_row_is_logged_at_its_step_by_w_and_b_s_names(wandb: Callable[..., StandIn], directory: RunDirectory) -> None:
    module = wandb()
    record = offline_record(directory)
    assert record is not None
    record.log(ROW)
    record.close()
    assert module.records[0].logged == [
        (3, {"run/step": 3, "train/loss": 2.5, "train/loss_by_corpus/mathematics": 2.0}),
    ]
    assert module.records[0].finished


def test_problems_are_a_table_of_questions_programs_and_verdicts(
    wandb: Callable[..., StandIn], directory: RunDirectory
) -> None:
    module = wandb()
    record = offline_record(directory)
    assert record is not None
    program = {"program": "print(6 * 7)", "verdict": "ok", "stdout": "42\n", "error": ""}
    asked = {"question": "6 times 7?", "reference": "42", "note": ""}
    rows: list[dict[str, Any]] = [
        {**asked, "output": "It is 42.", "programs": [program], "correct": True, "extracted": "42"},
        {**asked, "output": "It is \udc80.", "programs": [], "correct": False, "extracted": "41"},
        {**asked, "output": "", "programs": [], "correct": False, "extracted": None, "note": "no answer"},
    ]
    record.log_problems(4, rows)
    record.log_results({"tasks": {"products": {"accuracy": 0.5, "interval_95": (0.1, 0.9)}}}, {"products": rows})
    (step, alone), (_, results) = module.records[0].logged
    table: Any = alone["eval/problems"]
    assert (step, table.columns) == (4, ["question", "reference", "output", "programs", "verdict"])
    assert table.data == [
        ["6 times 7?", "42", "It is 42.", "print(6 * 7)\n# ok: 42\n", "correct"],
        ["6 times 7?", "42", "It is \\udc80.", "", "wrong: 41"],
        ["6 times 7?", "42", "", "", "no answer"],
    ]
    assert results == {"eval/products/accuracy": 0.5, "eval/products/problems": table}


@pytest.mark.parametrize("failing", ["init", "define_metric", "log", "finish"])
def test_a_failure_is_said_once_and_stops_nothing(
    failing: str, wandb: Callable[..., StandIn], directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb(failing)
    record = offline_record(directory)
    assert (record is None) == (failing in ("init", "define_metric"))
    if record is not None:
        for _ in range(3):
            record.log(ROW)
            record.log_problems(3, [])
        record.close()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1
    assert said[0].startswith("W&B")
    assert f"no {failing} today" in said[0]


def test_a_missing_package_stops_nothing(
    monkeypatch: pytest.MonkeyPatch, directory: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    assert offline_record(directory) is None
    assert capsys.readouterr().err.startswith("W&B is off for this run")


@pytest.mark.fault(
    "R18",
    injected="W&B hangs at the end",
    where="one process",
    holds="the run does not wait for it",
)
def test_a_slow_end_is_not_waited_for(
    wandb: Callable[..., StandIn],
    directory: RunDirectory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = wandb()
    record = offline_record(directory)
    assert record is not None
    monkeypatch.setattr(module.records[0], "finish", lambda: time.sleep(60))
    monkeypatch.setattr(weights_and_biases, "LONGEST_FINISH_SECONDS", 0.05)
    started = time.monotonic()
    record.close()
    assert time.monotonic() - started < 30  # not the minute it would have taken
    assert "did not finish" in capsys.readouterr().err


def test_disabled_is_disabled(wandb: Callable[..., StandIn], directory: RunDirectory) -> None:
    module = wandb()
    assert WeightsAndBiases.start("test", "disabled", directory, {}) is None
    assert module.calls == []
    assert not directory.wandb.exists()


def test_auto_goes_online_only_where_a_key_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    assert wandb_mode("auto") == "offline"
    netrc.write_text(f"machine api.wandb.ai login user password {KEY}\n")
    assert wandb_mode("auto") == "online"
    netrc.write_text("machine example.org login user password none\n")
    assert wandb_mode("auto") == "offline"
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_mode("auto") == "online"
    assert wandb_mode("offline") == "offline"  # what is asked for is done


def test_every_metric_has_a_name_in_one_of_the_groups() -> None:
    assert WANDB_NAMES.keys() == METRICS.keys()
    assert {name.partition("/")[0] for name in WANDB_NAMES.values()} <= {"train", "valid", "perf", "eval", "run"}
    assert wandb_names({"validation_loss_by_corpus": {"code": 1.0}}) == {"valid/validation_loss_by_corpus/code": 1.0}


def train_with_a_key(run_files: list[str]) -> list[Ending]:
    """Start and continue a run in one environment that holds a key, with the real package."""
    os.environ["WANDB_API_KEY"] = KEY
    return [dsmath(["train", run_file]) for run_file in run_files]


def test_the_real_package_records_offline_and_no_file_holds_the_key(inputs: Path, tmp_path: Path) -> None:
    run_files = [
        str(write_run_file(inputs, tmp_path / "run", tmp_path / f"{steps}.yaml", schedule__steps=steps, **OFFLINE_RUN))
        for steps in (2, 3)
    ]
    (endings,) = run_ranks(1, train_with_a_key, run_files)
    assert [ending.code for ending in endings] == [0, 0]
    assert "W&B" not in "".join(ending.err for ending in endings)
    records = sorted((tmp_path / "run" / "wandb").glob("offline-run-*"))
    assert len(records) == 2
    assert len({record.name.rpartition("-")[2] for record in records}) == 1  # the run's id
    for file in (path for path in (tmp_path / "run").rglob("*") if path.is_file()):
        assert KEY.encode() not in file.read_bytes(), file


def train_with_a_failing_record(run_file: str) -> Ending:
    sys.modules["wandb"] = StandIn("log")  # type: ignore[assignment]
    return dsmath(["train", run_file])


@pytest.mark.fault(
    "R18",
    injected="W&B fails",
    where="one process",
    holds="reported once; the run continues, and metrics.jsonl is complete",
)
def test_training_goes_on_where_w_and_b_fails(inputs: Path, tmp_path: Path) -> None:
    run_file = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml", schedule__steps=3, **OFFLINE_RUN)
    (ending,) = run_ranks(1, train_with_a_failing_record, str(run_file))
    assert ending.code == 0
    assert ending.err.splitlines() == ["W&B is off from step 1 on: no log today"]
    assert [row["step"] for row in rows_of(tmp_path / "run")] == [1, 2, 3]
