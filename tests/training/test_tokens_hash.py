"""The ledger of a run, compared with the files: in every layout, and over kills, changes of layout and of mixture."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dsmath.data.audit import ledger
from megatron_dsmath.data.audit.audit import audit
from megatron_dsmath.training import tokens_hash
from tests.support.corpora import small_run
from tests.support.ranks import run_ranks
from tests.training.ranks import LAYOUTS, read_rows, train_run, train_until_killed, with_fault


def ledger_of(output: Path) -> list[dict[str, Any]]:
    return read_rows(output / "ledger" / "steps.jsonl")


@settings(deadline=None, max_examples=30)  # a deadline would time torch's start
@given(first=st.integers(0, 10**9), vocabulary=st.sampled_from([2, 100_015, 2**31 - 1]), seed=st.integers(0, 99))
def test_torch_and_numpy_hash_alike(first: int, vocabulary: int, seed: int) -> None:
    tokens = np.random.default_rng(seed).integers(0, vocabulary, (6, 33))
    samples = np.arange(first, first + 6)
    ours = tokens_hash.sample_hashes(torch.from_numpy(tokens), torch.from_numpy(samples))
    assert ours.numpy().view(np.uint64).tolist() == ledger.sample_hashes(tokens, samples).tolist()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_leaves_the_same_ledger_and_it_holds(layout: str, undisturbed: Callable[[str], Path]) -> None:
    output = undisturbed(layout)
    found = audit(output)
    assert found.faults == ()
    assert (found.steps, found.totals.corpora[0].tokens) == (9, 9 * 6 * 32)
    assert ledger_of(output) == ledger_of(undisturbed("one process"))


def test_a_kill_a_resume_and_another_layout_leave_no_trace_in_the_ledger(
    inputs: Path, undisturbed: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="died"):
        run_ranks(2, train_until_killed, small_run(inputs, tmp_path), 5)
    run_ranks(2, train_run, small_run(inputs, tmp_path, parallel__pipeline=2))
    assert ledger_of(tmp_path) == ledger_of(undisturbed("one process"))
    assert audit(tmp_path).holds
    moved = read_rows(tmp_path / "logs" / "ledger_before_start_1.jsonl")
    assert [row["step"] for row in moved] == [4, 5]  # it had saved after step 3


def test_a_mixture_that_changes_at_a_checkpoint_continues_with_unseen_data(inputs: Path, tmp_path: Path) -> None:
    run_ranks(1, train_run, small_run(inputs, tmp_path, schedule__steps=3))
    changed = {"data__corpora__0__weight": 1.0, "checkpoint__allowed_changes": ["data.corpora"]}
    run_ranks(1, train_run, small_run(inputs, tmp_path, schedule__steps=9, **changed))
    found = audit(tmp_path)
    assert found.faults == ()
    assert found.versions == 2
    assert [row["plan_version"] for row in ledger_of(tmp_path)] == [0] * 3 + [1] * 6
    assert [corpus.tokens for corpus in found.totals.corpora] == [(3 * 6 + 6 * 4) * 32, (3 * 2 + 6 * 4) * 32]
    metrics = read_rows(tmp_path / "metrics.jsonl")
    assert metrics[-1]["tokens_by_corpus"] == {corpus.name: corpus.tokens for corpus in found.totals.corpora}
    manifest = json.loads((tmp_path / "checkpoints" / "step_9" / "MANIFEST.json").read_text())
    assert manifest["state"]["plan"] == json.loads((tmp_path / "ledger" / "plan.json").read_text())


@pytest.mark.parametrize("layout", [{"parallel__tensor": 2}, {"parallel__pipeline": 2}], ids=str)
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_share_a_microbatch_must_have_the_same_tokens(
    layout: dict[str, int], rank: int, inputs: Path, tmp_path: Path
) -> None:
    with pytest.raises(RuntimeError, match="ranks that share a microbatch read different tokens"):
        run_ranks(2, with_fault, f"drift:step.tokens:rank={rank}", train_run, small_run(inputs, tmp_path, **layout))
    assert not (tmp_path / "ledger" / "steps.jsonl").exists()


def test_a_data_parallel_rank_that_read_other_tokens_is_found_by_the_audit(inputs: Path, tmp_path: Path) -> None:
    run = small_run(inputs, tmp_path, schedule__steps=2)
    run_ranks(2, with_fault, "drift:step.tokens:rank=1", train_run, run)
    fault = audit(tmp_path).faults[0]
    assert fault.what == "a sample on disk differs from what was trained on"
    assert "no file differs from its sidecar" in str(fault.found)
    assert str(fault.where).startswith("step 1, sample 2: ")  # rank 1's first microbatch of 2
