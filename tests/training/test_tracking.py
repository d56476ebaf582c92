"""The console output of a run."""

from __future__ import annotations

import re
from pathlib import Path

from tests.support.corpora import write_run_file
from tests.support.ranks import run_ranks
from tests.training.ranks import dsmath, rows_of

LINE = re.compile(
    r"step (?P<step>\d+)/9  loss (?P<loss>\d+\.\d{4})(?:  validation (?P<validation>\d+\.\d{4}))?"
    r"  rate (?P<rate>\d\.\d\de-\d\d)  norm \d+\.\d\d  [\d,]+ tokens/s  about \d\d:\d\d:\d\d left"
)


def test_a_pipe_gets_a_line_every_so_many_steps_and_for_each_validation(inputs: Path, tmp_path: Path) -> None:
    run_file = write_run_file(
        inputs,
        tmp_path / "run",
        tmp_path / "run.yaml",
        tracking__console_every_steps=3,
        checkpoint__asynchronous=False,  # a save that waits for the previous one prints a line
    )
    (ending,) = run_ranks(1, dsmath, ["train", str(run_file)])
    assert ending.code == 0
    lines = [LINE.fullmatch(line) for line in ending.out.splitlines()]
    shown = [line for line in lines if line is not None]
    assert len(shown) == len(lines), ending.out
    rows = {row["step"]: row for row in rows_of(tmp_path / "run")}
    assert [int(line["step"]) for line in shown] == [3, 4, 6, 8, 9]
    for line in shown:
        row = rows[int(line["step"])]
        assert line["loss"] == f"{row['loss']:.4f}"
        assert line["rate"] == f"{row['learning_rate']:.2e}"
        assert line["validation"] == (f"{row['validation_loss']:.4f}" if "validation_loss" in row else None)
