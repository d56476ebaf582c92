"""Exhausted memory is one error with the section, the rank, the sizes and the remedies, and every rank ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_dsmath.errors import ConfigError, OutputError
from megatron_dsmath.supervision.out_of_memory import report_out_of_memory
from megatron_dsmath.training.rank_progress import RankProgress
from tests.support.corpora import write_run_file
from tests.support.ranks import run_ranks
from tests.support.runs import run_config
from tests.training.ranks import dsmath, rows_of, status_of, with_fault

# Logits of 2 sequences of 32 tokens are 25.6 MB each time, which no heap has free; the state is 154 MB.
LARGE = {"model__vocabulary_size": 100_000}


@pytest.mark.fault(
    "R28",
    injected="no more memory for one rank (RLIMIT_AS)",
    where="DP2: setup, the first step, a later one",
    holds="one error names the section, the rank, the bytes requested, the limit, the memory that the rank needs and "
    "the remedies; the exit code is 78, or 70 where steps were done before; the other rank ends too",
)
@pytest.mark.parametrize(
    ("point", "steps", "code", "kind", "said"),
    [
        ("setup.open", 0, 78, "config", "rank 1, data 1 of 2, setup"),
        ("step.begin:step=0", 0, 78, "config", "rank 1, data 1 of 2, step 1, microbatch 1 of 2"),
        pytest.param(
            *("step.begin:step=1", 1, 70, "internal", "rank 1, data 1 of 2, step 2, microbatch 1 of 2"),
            marks=pytest.mark.long,
        ),
    ],
)
def test_exhausted_memory_is_one_error(
    point: str, steps: int, code: int, kind: str, said: str, inputs: Path, tmp_path: Path
) -> None:
    run_file = write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml", **LARGE)
    endings = run_ranks(2, with_fault, f"memory:{point}:rank=1", dsmath, ["train", str(run_file)])
    assert endings[1].code == status_of(tmp_path / "run")["exit_code"] == code, endings[1].err
    assert endings[0].code == 70
    assert endings[1].err.count("error[") == 1
    assert "Traceback" not in endings[0].err + endings[1].err
    assert f"error[{kind}]: the host is out of memory" in endings[1].err
    assert said in endings[1].err
    assert "bytes requested" in endings[1].err
    assert "an address space limit of" in endings[1].err
    assert "lower parallel.microbatch_sequences (2), then set parallel.recompute to" in endings[1].err
    if steps:
        assert [row["step"] for row in rows_of(tmp_path / "run")] == [1]


TORCH = (
    "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate "
)


@pytest.mark.parametrize(
    ("error", "asked"),
    [  # as torch 2.13, numpy 2 and Linux say it
        (RuntimeError(f"{TORCH}25600000 bytes. Error code 12 (Cannot allocate memory)"), "25600000 bytes requested"),
        (MemoryError("Unable to allocate 7.45 GiB for an array with shape (1000000000,)"), "7.45 GiB requested"),
        (MemoryError(), "memory requested"),
        (OSError(12, "Cannot allocate memory"), "memory requested"),
        (RuntimeError("std::bad_alloc"), "memory requested"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "memory requested"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_the_message_of_each_library_is_recognized(error: Exception, asked: str) -> None:
    with (
        pytest.raises(ConfigError, match="the host is out of memory") as raised,
        report_out_of_memory(run_config(), RankProgress(), 0, 1),
    ):
        raise error
    assert asked in str(raised.value.found)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not fit"), OutputError("no space"), OSError(28, "full")])
def test_other_errors_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, report_out_of_memory(run_config(), RankProgress(), 0, 1):
        raise error
    assert raised.value is error


def test_the_sizes_are_those_of_the_layout() -> None:
    """By hand, of 1,000,000 parameters a rank: 2 bytes a weight, 4 a gradient, 12 in the optimizer over 2 copies."""
    run = run_config(precision="bf16", parallel__tensor=2)
    parameters = run.model.parameters // 2
    with pytest.raises(ConfigError) as raised, report_out_of_memory(run, RankProgress(), 0, 4):
        raise MemoryError
    needs = str(raised.value.expected)
    assert f"weights ({parameters:,} parameters) {parameters * 2 / 1024:.1f} KiB" in needs
    assert f"gradients {parameters * 4 / 1024:.1f} KiB" in needs
    assert f"optimizer state {parameters * 6 / 1024:.1f} KiB" in needs
    assert f"logits of a microbatch on the last stage {2 * 32 * 96 // 2 * 4 / 1024:.1f} KiB" in needs
