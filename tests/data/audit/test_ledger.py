from __future__ import annotations

from pathlib import Path

import pytest

from megatron_dsmath.data.audit.ledger import Ledger, StepHash
from megatron_dsmath.errors import DataError
from tests.data.mixture.test_mixture_plan import PAPER, PAPER_SAMPLES, SIZES, plan

PAPER_STEPS = 47_684


def test_a_ledger_reads_back_what_was_written(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    written = plan(PAPER, SIZES, 4096, PAPER_SAMPLES)
    ledger.write_plan(written)
    ledger.append(1, 0, 0, 2560, StepHash(2**64 - 1, 0))
    ledger.append(2, 0, 2560, 2560, StepHash(5, 2**63))
    assert ledger.read_plan() == written
    first, second = ledger.read_rows()
    assert (first.step, first.first_sample, first.end_sample, first.hash) == (1, 0, 2560, (2**64 - 1, 0))
    assert (second.step, second.plan_version, second.samples, second.hash) == (2, 0, 2560, (5, 2**63))


def test_the_papers_run_takes_less_than_20_mb(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    ledger.write_plan(plan(PAPER, SIZES, 4096, PAPER_SAMPLES))
    before = 0
    for step in (9, 99, 999, 9_999, PAPER_STEPS):  # a row is longest where its numbers are
        ledger.append(step, 99, 2560 * (step - 1), 2560, StepHash(2**64 - 1, 2**64 - 1))
        row_bytes = ledger.steps_file.stat().st_size - before
        before += row_bytes
    assert PAPER_STEPS * row_bytes + ledger.plan_file.stat().st_size < 20e6


def test_a_partial_last_line_is_ignored(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    for step in (1, 2):
        ledger.append(step, 0, 8 * step, 8, StepHash(1, 1))
    with ledger.steps_file.open("r+b") as file:
        file.truncate(ledger.steps_file.stat().st_size - 1)
    assert [row.step for row in ledger.read_rows()] == [1]


ROW = '{"step":2,"plan_version":0,"first_sample":8,"samples":8,"total":"0000000000000001","moment":"000000000000000f"}'


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{}",
        "[1]",
        '{"step": 2}',
        "\x00" * 9,
        "[" * 200_000,
        ROW.replace('"samples":8', f'"samples":{10**18}'),  # would be hashed, and not fit into memory
        ROW.replace('"first_sample":8', f'"first_sample":{2**63}'),
        ROW.replace('"first_sample":8', f'"first_sample":{"9" * 5000}'),
    ],
    ids=range(9),
)
def test_a_damaged_row_is_refused_by_line(tmp_path: Path, line: str) -> None:
    ledger = Ledger(tmp_path)
    ledger.append(1, 0, 0, 8, StepHash(1, 1))
    with ledger.steps_file.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match="the ledger is damaged") as refusal:
        ledger.read_rows()
    assert f"{ledger.steps_file}:2" in refusal.value.text()


def test_the_undamaged_row_is_valid(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.steps_file.write_text(ROW + "\n")
    assert ledger.read_rows()[0].hash == (1, 15)


def test_a_run_without_a_ledger_is_refused(tmp_path: Path) -> None:
    for read in (Ledger(tmp_path).read_plan, Ledger(tmp_path).read_rows):
        with pytest.raises(DataError, match="has no ledger"):
            read()


def test_a_damaged_plan_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    ledger.write_plan(plan(PAPER, SIZES, 4096, PAPER_SAMPLES))
    ledger.plan_file.write_text(ledger.plan_file.read_text().replace('"arithmetic":1', '"arithmetic":2'))
    with pytest.raises(DataError, match="arithmetic"):
        ledger.read_plan()
