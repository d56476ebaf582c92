"""Tests for a GPU (`make test-gpu`), which also run on a CPU in `make test-full`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY
from tests.support.corpora import write_inputs, write_run_file

WITHOUT_GPU = {"CUDA_VISIBLE_DEVICES": ""}
# Other kernels sum in another order; 10 steps of AdamW amplify the difference (docs/numerics.md).
FP32_TOLERANCE = 1e-4
GRADIENT_NORM_TOLERANCE = 1e-3  # norms differ several times as much as losses do
# On a GPU the backward pass of attention adds in no fixed order, and bf16 has 8 bits.
BF16_TOLERANCE = 1e-2


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.long), pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    import torch

    found: str = request.param
    if found == "cuda" and not torch.cuda.is_available():
        pytest.fail("no CUDA device here: this test is for a machine that has one")
    return found


def python(device: str, *arguments: str | Path) -> str:
    """The output of `python ARGUMENTS` in a process that sees only `device`."""
    world = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    environment = {name: value for name, value in os.environ.items() if name not in world}
    environment |= WITHOUT_GPU if device == "cpu" else {}
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, text=True, capture_output=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_twenty_bf16_steps_learn_and_resume_from_the_tenth(device: str, tmp_path: Path) -> None:
    write_inputs(tmp_path)
    run_file = write_run_file(
        tmp_path,
        tmp_path / "run",
        tmp_path / "run.yaml",
        precision="bf16",
        schedule__steps=20,
        checkpoint__every_steps=10,
        validation__every_steps=10,
    )
    python(device, "-m", "megatron_dsmath", "train", run_file)
    whole = metrics(tmp_path / "run")
    assert [row["step"] for row in whole] == list(range(1, 21))
    assert whole[-1]["loss"] < 0.9 * whole[0]["loss"]
    assert whole[-1]["validation_loss"] < whole[9]["validation_loss"]

    shutil.rmtree(tmp_path / "run/checkpoints/step_20")
    assert "continuing after step 10" in python(device, "-m", "megatron_dsmath", "train", run_file)
    again = metrics(tmp_path / "run")
    assert [row["step"] for row in again] == list(range(1, 21))
    assert again[:10] == whole[:10]
    tolerance = BF16_TOLERANCE if device == "cuda" else 0.0
    for resumed, undisturbed in zip(again[10:], whole[10:], strict=True):
        assert resumed["consumed_tokens"] == undisturbed["consumed_tokens"]
        assert resumed["loss"] == pytest.approx(undisturbed["loss"], rel=tolerance, abs=0)


def test_ten_fp32_steps_have_the_losses_of_a_cpu(device: str) -> None:
    ours, cpu = (json.loads(python(where, "-m", "tests.gpu.ten_steps").splitlines()[-1]) for where in (device, "cpu"))
    assert (ours["device"], cpu["device"]) == (device, "cpu")
    for (loss, gradient_norm), (their_loss, their_gradient_norm) in zip(ours["figures"], cpu["figures"], strict=True):
        assert loss == pytest.approx(their_loss, rel=FP32_TOLERANCE)
        assert gradient_norm == pytest.approx(their_gradient_norm, rel=GRADIENT_NORM_TOLERANCE)
