"""A launcher in a scratch folder, alone and inside a SLURM job."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.launch.stand_ins import LAUNCH, PYTHON, SCONTROL, SRUN, TORCHRUN, Launch


@pytest.fixture
def launch(tmp_path: Path) -> Launch:
    (tmp_path / "bin").mkdir()
    (tmp_path / "run.yaml").touch()
    environment = {
        "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        "CUDA_VISIBLE_DEVICES": "",
        "STUB_CALLS": str(tmp_path / "calls.jsonl"),
        "STUB_RUN_DIRECTORY": str(tmp_path / "runs" / "one"),
        "STUB_STATUS": '{"state": "done", "exit_code": 0}',
    }
    launch = Launch(tmp_path, environment)
    launch.add_program("python", PYTHON)
    launch.add_program("torchrun", TORCHRUN)
    return launch


@pytest.fixture
def job(launch: Launch) -> Launch:
    """The same inside a SLURM job of two nodes."""
    launch.add_program("srun", SRUN)
    launch.add_program("scontrol", SCONTROL)
    launch.environment |= {
        "SLURM_JOB_ID": "54321",
        "SLURM_JOB_NODELIST": "n[7-8]",
        "SLURM_NNODES": "2",
        "SLURM_SUBMIT_DIR": str(LAUNCH.parent),
    }
    return launch
