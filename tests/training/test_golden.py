"""The losses of a small run, recorded: an accidental change of the recipe is found here.

The one place where expected numbers come from a run of the code itself (its other tests say why they are right). Where
a change is meant: `python -m tests.training.test_golden` writes them again.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from random import Random

import numpy as np
import pytest

from megatron_dsmath.config.sections import RunConfig
from megatron_dsmath.data.indexed.dataset import IndexedWriter
from tests.support.corpora import small_run
from tests.support.ranks import run_ranks
from tests.support.small_tokenizer import write_small_tokenizer
from tests.training.ranks import Row, rows_of, train_run

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "small_run.txt"
COLUMNS = ("loss", "grad_norm", "learning_rate", "validation_loss")
# Other processors and versions of torch add in another order; a change of the recipe shows in the first digits.
TOLERANCE = 1e-4


def golden_run(folder: Path) -> RunConfig:
    """Token ids come from Python's own generator, so that no tokenizer's version can change them."""
    write_small_tokenizer(folder / "tokenizer")
    draw = Random("golden")
    for name in ("mathematics", "code"):
        with IndexedWriter(folder / "data" / name, np.dtype(np.uint16)) as writer:
            for _ in range(60):
                first = draw.randrange(200)
                writer.add_document([first + place % 7 for place in range(draw.randrange(20, 80))])
    return small_run(folder, folder / "run", schedule__steps=10, validation__every_steps=5)


def figures(rows: list[Row]) -> list[list[float]]:
    return [[row[name] for name in COLUMNS if name in row] for row in rows]


def test_the_losses_of_the_small_run_are_unchanged(tmp_path: Path) -> None:
    run_ranks(1, train_run, golden_run(tmp_path))
    lines = [line.split() for line in GOLDEN.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    ours = figures(rows_of(tmp_path / "run"))
    assert [len(row) for row in ours] == [len(line) for line in lines]
    for row, line in zip(ours, lines, strict=True):
        assert row == pytest.approx([float(value) for value in line], rel=TOLERANCE)


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp())
    run_ranks(1, train_run, golden_run(folder))
    header = f"# Written by tests/training/test_golden.py. A line a step: {', '.join(COLUMNS)} (where there is one)\n"
    lines = (" ".join(f"{value:.6g}" for value in row) for row in figures(rows_of(folder / "run")))
    GOLDEN.write_text(header + "\n".join(lines) + "\n", encoding="utf-8")
