"""Faults are injected at the point, rank, step and count that the variable names, and nowhere without it."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from pathlib import Path

import pytest

from megatron_dsmath import fault_injection
from megatron_dsmath.errors import UsageError
from megatron_dsmath.fault_injection import KINDS, POINTS, VARIABLE, InjectedFaultError, fault_factor, fault_point

PACKAGE = Path(fault_injection.__file__).parent


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fault_injection, "_counts", Counter())
    monkeypatch.setenv("RANK", "1")


def test_nothing_happens_without_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    for point in POINTS:
        fault_point(point)
        assert fault_factor(point) == 1.0


@pytest.mark.parametrize(
    ("selectors", "hits"),
    [
        ("", [1, 2, 3, 4]),
        (":count=2", [2]),
        (":step=8", [3]),
        (":rank=1:count=4", [4]),
        (":rank=0", []),
        (":count=1,3", [1, 3]),
    ],
)
def test_the_selectors_choose_rank_count_and_step(
    selectors: str, hits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, f"raise:step.begin{selectors}")
    found = []
    for passage, step in enumerate((6, 7, 8, 9), 1):
        fault_point("setup.begin", step)  # another point
        try:
            fault_point("step.begin", step)
        except InjectedFaultError:
            found.append(passage)
    assert found == hits


def test_a_full_disk_is_the_error_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "full:checkpoint.begun")
    with pytest.raises(OSError, match="No space left on device"):
        fault_point("checkpoint.begun")


@pytest.mark.parametrize(("kind", "factor"), [("nan", math.nan), ("infinity", math.inf), ("spike", 1000.0)])
def test_values_are_corrupted_by_a_factor(kind: str, factor: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, f"{kind}:step.loss")
    assert str(fault_factor("step.loss")) == str(factor)


def test_a_drift_grows_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "drift:step.loss:count=1,2,4")
    assert [fault_factor("step.loss") for _ in range(4)] == [1 + 1 / 1024, 1 + 2 / 1024, 1.0, 1 + 4 / 1024]


@pytest.mark.parametrize(
    "text",
    [
        "kill",
        "kill:nowhere",
        "drown:step.begin",
        "kill:step.begin:rank=x",
        "kill:step.begin:rank=0,",
        "kill:step.begin:host=1",
    ],
)
def test_an_unknown_fault_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(UsageError, match="the fault to inject is not a known one"):
        fault_point("step.begin")


def test_several_faults_are_separated_by_blanks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "nan:step.loss:count=2 full:checkpoint.begun infinity:step.loss:count=3")
    assert str([fault_factor("step.loss") for _ in range(4)]) == "[1.0, nan, inf, 1.0]"
    with pytest.raises(OSError, match="No space left on device"):
        fault_point("checkpoint.begun")


def test_a_delay_is_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "delay:step.begin:count=1")
    started = time.monotonic()
    fault_point("step.begin")
    assert time.monotonic() - started >= 1.0
    fault_point("step.begin")


def test_every_point_is_in_the_table_and_every_entry_in_the_code() -> None:
    calls = re.compile(r"fault_(?:point|factor)\(\s*f?\"([^\"]+)\"")
    code = "".join(
        path.read_text(encoding="utf-8") for path in PACKAGE.rglob("*.py") if path.name != "fault_injection.py"
    )
    called = set(calls.findall(code))
    named = {point for point in called if "{" not in point}
    assert named <= POINTS.keys()
    sections = [point.partition("}")[2] for point in called if "{" in point]  # f"{section}.begin"
    assert [point for point in POINTS if point not in named and not point.endswith(tuple(sections))] == []


def test_every_kind_and_point_is_described_in_a_sentence() -> None:
    assert all(len(sentence.split()) > 3 for sentence in [*KINDS.values(), *POINTS.values()])
