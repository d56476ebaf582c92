"""Programs with tests and proofs from problems to results, with a model that answers from a script."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from megatron_dsmath.errors import UsageError
from megatron_dsmath.evaluation.evaluate import evaluate_model
from megatron_dsmath.evaluation.protocol import FOLDER
from megatron_dsmath.evaluation.results.scores import comparison_table
from megatron_dsmath.sandbox import confinement
from tests.evaluation.scripted import ScriptedBackend, evaluation_of, rows_of, scripted_model, write_problems

THEOREMS = [
    {"question": f"Formal:\ntheorem t{n}: True", "statement": f"theorem t{n}: True", "subject": "other"}
    for n in range(4)
]
needs_sandbox = pytest.mark.skipif(not confinement.is_supported(), reason="this machine cannot confine a program")


def own_protocol(folder: Path, shipped: str, *changes: tuple[str, str]) -> str:
    text = (
        (FOLDER / f"{shipped}.yaml").read_text(encoding="utf-8").replace("text: prompts/", f"text: {FOLDER}/prompts/")
    )
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (folder / "protocol.yaml").write_text(text, encoding="utf-8")
    return str(folder / "protocol.yaml")


@needs_sandbox
def test_programs_continue_the_question_and_are_tested(tmp_path: Path) -> None:
    problems = [
        {"question": f'def plus_{n}(number):\n    """Add {n}."""\n', "tests": f"assert plus_{n}(1) == {n + 1}"}
        for n in range(4)
    ]
    write_problems(tmp_path / "problems.jsonl", problems)
    bodies = ("\n    return number + 0\n\n\nprint(1)", "\n    return number", "\n    import sys\n    sys.exit(0)", "")
    model = scripted_model(tmp_path / "model", lambda read, seed: bodies[int(read.rpartition("Add ")[2][0])])
    protocol = own_protocol(tmp_path, "base-code", ("  humaneval:", "  en:"))
    results = evaluate_model(evaluation_of(tmp_path, protocol), model)

    figures = results["tasks"]["problems"]
    assert (figures["accuracy"], figures["accuracy_as_the_paper"]) == (0.25, 0.25)
    assert (figures["programs"], figures["program_errors"], figures["no_answer"]) == (3, 2, 1)
    right, wrong, left, nothing = rows_of(tmp_path / "out")
    assert isinstance(model.backend, ScriptedBackend)
    assert model.backend.prompts_read[0] == '<s>def plus_0(number):\n    """Add 0."""', "the problem as it is"
    assert right["programs"][0]["program"] == problems[0]["question"] + "\n    return number + 0\n\n\n"
    assert (right["correct"], wrong["programs"][0]["error"]) == (True, "AssertionError")
    assert left["programs"][0]["error"] == "the program ended before its tests did"
    assert (nothing["correct"], nothing["note"], nothing["programs"]) == (False, "no answer", [])


@needs_sandbox
def test_an_output_may_be_the_whole_program(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", [{"question": "Double it.", "tests": "assert double(2) == 4"}])
    model = scripted_model(tmp_path / "model", lambda read, seed: "\ndef double(n):\n    return 2 * n\n[DONE]\nYou are")
    protocol = own_protocol(tmp_path, "base-code", ("  mbpp:", "  problems:"))
    results = evaluate_model(evaluation_of(tmp_path, protocol), model)
    assert results["tasks"]["problems"]["accuracy"] == 1
    assert rows_of(tmp_path / "out")[0]["programs"][0]["program"] == "\ndef double(n):\n    return 2 * n\n\n"


def test_without_a_checker_there_is_no_verdict_and_no_accuracy(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", THEOREMS)
    model = scripted_model(tmp_path / "model", lambda read, seed: "\n  by simp\n\n\n\nInformal:\n(* Another *)")
    results = evaluate_model(evaluation_of(tmp_path, "base-proof", samples=2), model)

    figures = results["tasks"]["problems"]
    assert (figures["problems"], figures["no_verdict"]) == (4, 8)
    assert not [name for name in figures if "accuracy" in name or "interval" in name or name in ("pass_at", "majority")]
    assert figures["by_subject"] == {"other": {"problems": 4}}
    rows = rows_of(tmp_path / "out")
    assert {(row["correct"], row["note"], row["extracted"]) for row in rows} == {(None, "no verdict", "by simp")}
    assert {row["problems"] for row in comparison_table(results)} == {"no verdict"}
    assert "no verdict" in (tmp_path / "out/problems-problems.html").read_text(encoding="utf-8")


def test_proofs_get_the_checkers_verdict(tmp_path: Path) -> None:
    script = tmp_path / "checker.py"
    script.write_text(
        "import json, sys\nasked = json.load(sys.stdin)\nproved = 't0' not in asked['statement']\n"
        "print(json.dumps({'proved': proved}))\nsys.exit(0 if proved else 1)\n"
    )
    named = json.dumps([sys.executable, str(script)])
    protocol = own_protocol(tmp_path, "base-proof", ("checker: null", f"checker: {named}"))
    write_problems(tmp_path / "problems.jsonl", THEOREMS)
    answers = ("\n  by simp", "\n  by simp", "\n  sorry", "")
    model = scripted_model(tmp_path / "model", lambda read, seed: answers[int(read.rpartition("theorem t")[2][0])])
    results = evaluate_model(evaluation_of(tmp_path, protocol), model)
    figures = results["tasks"]["problems"]
    assert (figures["accuracy"], figures["no_answer"], figures["no_verdict"]) == (0.25, 1, 0)
    assert [row["correct"] for row in rows_of(tmp_path / "out")] == [False, True, False, False]
    assert rows_of(tmp_path / "out")[2]["checker_message"] == "the proof contains sorry"
    assert results["protocol_text"]["proofs"]["checker"] == [sys.executable, str(script)]


def test_problems_of_another_kind_are_refused_before_generation(tmp_path: Path) -> None:
    write_problems(tmp_path / "problems.jsonl", THEOREMS)
    model = scripted_model(tmp_path / "model", lambda read, seed: "")
    with pytest.raises(UsageError, match="mode proof"):
        evaluate_model(evaluation_of(tmp_path, "instruct-cot"), model)
    assert isinstance(model.backend, ScriptedBackend) and model.backend.calls == []
