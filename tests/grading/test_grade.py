from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest

from megatron_dsmath.grading import extraction, paper_verdict
from megatron_dsmath.grading.grade import Attempt, Grader, is_correct, reference_of, task_named
from megatron_dsmath.grading.sandboxed_comparison import Comparison, ComparisonResult, Note, _read_results
from megatron_dsmath.sandbox.outcome import Outcome, Verdict
from tests.grading.hostile import ANSWERS
from tests.grading.sets import SETS, outputs, references, rewritten

EVERY = 20  # CI tests every twentieth problem; the long test tests all


def never(reference: str, answer: str) -> bool:
    raise AssertionError(f"text and numbers must decide: {answer!r} for {reference!r}")


def is_graded_correct(reference: str, output: str, task: str | None) -> bool:
    extracted = extraction.extract(output, task)
    assert extracted is not None
    return is_correct(Comparison("strict", reference, extracted, task), never, never)


def check_references(folder: Path, name: str, every: int) -> None:
    task, _, rows = SETS[name]
    found = references(folder, name)
    assert len(found) == rows
    for reference in found[::every]:
        for output in outputs(reference):
            assert is_graded_correct(reference, output, task), (reference, output)
        if task not in extraction.CHOICE_TASKS:
            for form in rewritten(reference):
                assert is_graded_correct(reference, rf"so it is \boxed{{{form}}}", task), (reference, form)


@pytest.mark.parametrize("name", SETS)
def test_a_reference_is_correct_in_every_form_a_model_writes(name: str, shared_data: Path) -> None:
    check_references(shared_data, name, EVERY)


@pytest.mark.long
@pytest.mark.parametrize("name", SETS)
def test_every_reference_is_correct_in_every_form(name: str, shared_data: Path) -> None:
    check_references(shared_data, name, 1)


def check_other_answers(folder: Path, grader: Grader, name: str, every: int) -> None:
    task = SETS[name][0]
    wanted = references(folder, name)[::every]
    given = random.Random(0).sample(wanted, len(wanted))
    attempts = [
        Attempt(rf"so it is \boxed{{{other}}}", reference, task)
        for reference, other in zip(wanted, given, strict=True)
        if other != reference
    ]
    accepted = [
        (attempt.reference, verdict.extracted)
        for attempt, verdict in zip(attempts, grader.grade(attempts), strict=True)
        if verdict.correct
    ]
    assert len(accepted) <= len(attempts) / 100, accepted


@pytest.mark.parametrize("name", ["gsm8k_test.jsonl", "sat_test.jsonl"])
def test_another_problems_answer_is_wrong(name: str, shared_data: Path, grader: Grader) -> None:
    check_other_answers(shared_data, grader, name, 1)


@pytest.mark.long
@pytest.mark.parametrize("name", SETS)
def test_another_problems_answer_is_wrong_in_every_set(name: str, shared_data: Path, grader: Grader) -> None:
    check_other_answers(shared_data, grader, name, 1)


def test_a_part_of_math_is_wrong_with_another_problems_answer(shared_data: Path, grader: Grader) -> None:
    check_other_answers(shared_data, grader, "math_test.jsonl", 25)


def test_labelled_outputs_get_their_label(shared_data: Path, grader: Grader) -> None:
    file = shared_data / "eval" / "outputs" / "openai_gsm8k_example_model_solutions_first100.jsonl"
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    labelled = [
        (Attempt(value["solution"], row["ground_truth"].rpartition("A:")[2], "gsm8k"), value["is_correct"])
        for row in rows
        for value in row.values()
        if isinstance(value, dict)
    ]
    verdicts = grader.grade(attempt for attempt, _ in labelled)
    assert len(verdicts) == 400
    wrong = [
        (attempt.reference, verdict)
        for (attempt, label), verdict in zip(labelled, verdicts, strict=True)
        if verdict.correct != label
    ]
    assert wrong == []


def test_the_answer_of_a_real_tool_trajectory_is_its_authors_answer(shared_data: Path) -> None:
    file = shared_data / "eval" / "outputs" / "tora_code_34b_gsm8k_first60.jsonl"
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        assert is_graded_correct(row["pred"][0].replace("%", ""), "".join(row["code"]), "gsm8k"), row["idx"]


@pytest.mark.parametrize("name", ANSWERS)
def test_a_hostile_answer_is_wrong_and_changes_nothing_and_takes_little_time(
    name: str, impatient: Grader, tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    answer = ANSWERS[name].replace("{victim}", str(victim))
    started = time.process_time()

    (verdict,) = impatient.grade([Attempt(rf"so \boxed{{{answer}}}", r"\sqrt{7}", "math")])

    assert not verdict.correct and not verdict.correct_as_the_paper
    assert victim.read_text() == "precious"
    assert time.process_time() - started < 5, "CPU time of the trusted process for an output of a megabyte"


@pytest.mark.parametrize("name", ANSWERS)
def test_a_hostile_answer_is_extracted_in_linear_time(name: str) -> None:
    for output in (f"The answer is {ANSWERS[name]}.", f"答案是{ANSWERS[name]}。", ANSWERS[name]):
        started = time.process_time()
        extraction.extract(output, "math")
        paper_verdict.extract(output, "math")
        assert time.process_time() - started < 5


def test_an_answer_that_hangs_does_not_change_other_verdicts(grader: Grader) -> None:
    hanging = Attempt(r"\boxed{5^{5^{5^{5^{5}}}}}", r"\sqrt{7}", "math")
    others = [Attempt(rf"\boxed{{\sqrt{{{4 * n}}}}}", rf"2\sqrt{{{n}}}", "math") for n in (2, 3, 5, 6, 7)]
    verdicts = grader.grade([*others[:3], hanging, *others[3:]])
    assert [verdict.correct for verdict in verdicts] == [True] * 3 + [False] + [True] * 2
    assert [verdict.note for verdict in verdicts] == [""] * 3 + ["timeout"] + [""] * 2


def test_several_answers_that_hang_in_one_process_do_not_change_other_verdicts(impatient: Grader) -> None:
    towers = [Attempt(rf"\boxed{{5^{{5^{{5^{{5^{{{n}}}}}}}}}}}", r"\sqrt{7}", "math") for n in (5, 6)]
    others = [Attempt(rf"\boxed{{\sqrt{{{4 * n}}}}}", rf"2\sqrt{{{n}}}", "math") for n in (2, 3, 5, 6, 7)]
    verdicts = impatient.grade([towers[0], *others[:3], towers[1], *others[3:]])
    assert [verdict.note for verdict in verdicts] == ["timeout", "", "", "", "timeout", "", ""]
    assert [verdict.correct for verdict in verdicts] == [False, True, True, True, False, True, True]
    assert [verdict.correct_as_the_paper for verdict in verdicts] == [verdict.correct for verdict in verdicts]


OUTCOMES: dict[str, tuple[Outcome, list[ComparisonResult]]] = {
    "all answered": (Outcome("ok", "true\nfalse\n", "", "", 0.1), [ComparisonResult(True), ComparisonResult(False)]),
    "the second times out": (
        Outcome("error", "true\n", "", "ended by SIGPROF", 5),
        [ComparisonResult(True), ComparisonResult(False, "timeout")],
    ),
    "killed at the second": (Outcome("error", "true\n", "", "ended by SIGSEGV", 0.1), [ComparisonResult(True)]),
    "killed at the first": (Outcome("memory", "", "", "", 0.1), []),
    "more than was asked": (Outcome("ok", "true\n" * 3, "", "", 0.1), []),
    "something else": (Outcome("ok", "true\nyes\n", "", "", 0.1), []),
    "something else, and a timeout": (Outcome("error", "yes\n", "", "ended by SIGPROF", 5), []),
}


@pytest.mark.parametrize("what", OUTCOMES)
def test_only_valid_output_of_a_process_gives_results(what: str) -> None:
    outcome, results = OUTCOMES[what]
    assert _read_results([Comparison("paper", "7", answer, "math") for answer in "12"], outcome) == results


def test_a_comparison_alone_always_has_a_result() -> None:
    comparison = Comparison("paper", "7", "1", "math")
    notes: dict[Verdict, Note] = {"timeout": "timeout", "memory": "error", "error": "error"}
    for verdict, note in notes.items():
        assert _read_results([comparison], Outcome(verdict, "", "", "", 0.1)) == [ComparisonResult(False, note)]


def test_a_task_is_found_by_every_spelling_of_its_name() -> None:
    spellings = {
        "gsm8k-test": "gsm8k", "mgsm_zh": "mgsm-zh", "MATH": "math", "cmath": "cmath", "math_sat": "sat",
        "agieval-gaokao-mathqa": "gaokao-mathqa", "gaokao_mathcloze": "gaokao-cloze", "mmlu_stem": "mmlu-stem",
        "OCW": "ocw", "weather": None, "": None,
    }  # fmt: skip
    assert {name: task_named(name) for name in spellings} == spellings


def test_a_reference_may_be_a_complete_solution() -> None:
    assert reference_of("3 + 4 = 7\n#### 1,234") == "1,234"
    assert reference_of(r"Thus $x=\boxed{\frac{1}{2}}$.") == r"\frac{1}{2}"
    assert reference_of(" 18 ") == "18"


def test_grading_imports_neither_torch_nor_sympy() -> None:
    import subprocess
    import sys

    program = (
        "import sys; from megatron_dsmath.grading import grade_file;"
        "print([name for name in ('torch', 'sympy', 'math_verify') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=os.environ)
    assert done.stdout.strip() == "[]"
