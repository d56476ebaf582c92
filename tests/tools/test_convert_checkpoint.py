from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.checkpoint.llama import same_bits, tensors_of, write_llama
from tests.checkpoint.ranks import save_as_megatron
from tests.support.ranks import run_ranks
from tests.support.runs import run_config

REPOSITORY = Path(__file__).parents[2]


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "tools/convert_checkpoint.py", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("hf") / "llama", vocab_size=96, num_hidden_layers=4)


def test_a_round_trip_is_bitwise_equal(folder: Path, tmp_path: Path) -> None:
    there = convert("--from", "hf", "--to", "dsmath", "--input", folder, "--output", tmp_path / "ours", "--no-gate")
    back = convert(
        "--from", "dsmath", "--to", "hf", "--input", tmp_path / "ours", "--output", tmp_path / "theirs", "--no-gate"
    )
    assert "not compared with transformers: --no-gate" in there.stdout
    assert (there.returncode, back.returncode) == (0, 0), there.stderr + back.stderr
    assert same_bits(tensors_of(tmp_path / "theirs"), tensors_of(folder))


def test_megatron_becomes_a_huggingface_folder(folder: Path, tmp_path: Path) -> None:
    iteration = tmp_path / "megatron" / "iter_0000001"
    run_ranks(1, save_as_megatron, run_config(), folder, iteration, {}, False)
    config = folder / "config.json"
    done = convert(
        "--from",
        "megatron",
        "--to",
        "hf",
        "--input",
        iteration,
        "--output",
        tmp_path / "out",
        "--model-config",
        config,
        "--no-gate",
    )
    assert done.returncode == 0, done.stderr
    assert same_bits(tensors_of(tmp_path / "out"), tensors_of(folder))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--from", "hf", "--to", "hf"], "nothing to convert"),
        (["--from", "dsmath", "--to", "dsmath"], "nothing to convert"),
        (["--from", "megatron", "--to", "hf"], "--model-config"),
        (["--from", "hf", "--to", "dsmath", "--vocabulary-size", "96"], "--vocabulary-size"),
        (["--from", "hf", "--to", "dsmath"], "nothing at this path"),
        (["--from", "dsmath", "--to", "hf"], "not a checkpoint"),
        (["--from", "megatron", "--to", "hf", "--model-config", "nowhere.json"], "nowhere.json"),
    ],
)
def test_a_mistake_is_one_error_without_a_traceback(tmp_path: Path, arguments: list[str], words: str) -> None:
    done = convert(*arguments, "--input", tmp_path / "nowhere", "--output", tmp_path / "out")
    assert done.returncode == 78
    assert done.stderr.startswith("error[") and words in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []
