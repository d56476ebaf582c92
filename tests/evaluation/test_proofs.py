"""Proof checking: accepted and refused proofs, and checkers that fail."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from megatron_dsmath.evaluation.proofs import check_proofs
from megatron_dsmath.evaluation.protocol import Proofs

STATEMENT = 'theorem one: "1 + 1 = (2::nat)"'
# Accepts proofs with "by simp"; other words in the proof select what else the checker does.
CHECKER = """
import json, os, sys, time
asked = json.load(sys.stdin)
proof = asked["proof"]
if "sleep" in proof:
    if os.fork() == 0:
        sys.stdout.write(f"{os.getpid()}\\n")
        open("{folder}/child", "w").write(str(os.getpid()))
    time.sleep(60)
if "memory" in proof:
    held = bytearray(1 << 30)
if "environment" in proof:
    print(json.dumps({"proved": "SECRET" not in os.environ, "message": ""}))
    sys.exit(0)
if "lies" in proof:
    print(json.dumps({"proved": True}))
    sys.exit(1)
if "silent" in proof:
    sys.exit(0)
proved = asked["statement"].startswith("theorem one") and "by simp" in proof
print("theory checked")
print(json.dumps({"proved": proved, "message": "" if proved else "Failed to finish proof"}))
sys.exit(0 if proved else 1)
"""


@pytest.fixture
def proofs(tmp_path: Path) -> Proofs:
    script = tmp_path / "checker.py"
    script.write_text(CHECKER.replace("{folder}", str(tmp_path)))
    return Proofs(
        checker=(sys.executable, str(script)),
        refused_words=("sorry", "oops", "ML"),
        timeout_seconds=60.0,
        memory_mib=256,
        at_once=2,
    )


def test_exit_code_and_last_line_of_the_checker_decide(proofs: Proofs) -> None:
    right, wrong, silent, lies = check_proofs(
        [(STATEMENT, proof) for proof in ("  by simp", "  by auto", "silent by simp", "lies by simp")], proofs
    )
    assert (right.is_proved, right.note, right.message) == (True, "", "")
    assert (wrong.is_proved, wrong.note, wrong.message) == (False, "", "Failed to finish proof")
    assert (silent.is_proved, silent.note) == (lies.is_proved, lies.note) == (False, "error")
    assert "exit code 1" in lies.message


@pytest.mark.parametrize(
    "proof",
    [
        "  sorry", "by simp sorry", 'oops\ntheorem two: "True" by simp', "ML \\<open>OS.Process.exit\\<close> by simp",
        "ML\\<open>1\\<close> by simp",
    ],
)  # fmt: skip
def test_a_proof_that_gives_up_or_runs_code_never_reaches_the_checker(proofs: Proofs, proof: str) -> None:
    (checked,) = check_proofs([(STATEMENT, proof)], proofs)
    assert (checked.is_proved, checked.note) == (False, "")
    assert "the proof contains" in checked.message


def test_a_refused_word_inside_another_word_is_allowed(proofs: Proofs) -> None:
    (checked,) = check_proofs([(STATEMENT, "  (* sorryless, MLx *) by simp")], proofs)
    assert checked.is_proved


def test_an_empty_output_is_not_a_proof(proofs: Proofs) -> None:
    (checked,) = check_proofs([(STATEMENT, " \n")], proofs)
    assert (checked.is_proved, checked.note) == (False, "no answer")


def test_a_hanging_checker_is_killed_with_its_processes(proofs: Proofs, tmp_path: Path) -> None:
    started = time.monotonic()
    (hanging,) = check_proofs([(STATEMENT, "sleep by simp")], proofs.model_copy(update={"timeout_seconds": 5.0}))
    assert (hanging.is_proved, hanging.note) == (False, "timeout")
    assert time.monotonic() - started < 45, "the checker would sleep for a minute"
    child = int((tmp_path / "child").read_text())
    assert not Path(f"/proc/{child}/stat").is_file() or " Z " in Path(f"/proc/{child}/stat").read_text()


def test_a_checker_beyond_its_memory_limit_proves_nothing(proofs: Proofs) -> None:
    (checked,) = check_proofs([(STATEMENT, "memory by simp")], proofs)
    assert (checked.is_proved, checked.note) == (False, "error")


def test_no_secret_of_the_environment_reaches_the_checker(proofs: Proofs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "SECRET", "precious")
    (checked,) = check_proofs([(STATEMENT, "environment")], proofs)
    assert checked.is_proved
