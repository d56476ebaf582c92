from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.errors import DataError, UsageError
from megatron_dsmath.evaluation.benchmarks import load_benchmarks
from megatron_dsmath.evaluation.published import PUBLISHED
from tests.evaluation.scripted import write_problems


def test_every_row_of_every_benchmark_becomes_a_problem(shared_data: Path) -> None:
    of_code = ["humaneval", "mbpp"]
    loaded = load_benchmarks(shared_data / "eval", [task for task in PUBLISHED if task not in of_code])
    benchmarks = {
        benchmark.task: benchmark for benchmark in [*loaded, *load_benchmarks(shared_data / "pretrain", of_code)]
    }
    # DeepSeekMath's evaluation_results.json counts as many samples of each; Chen et al. 2021 and Austin et al. 2021.
    assert {task: len(benchmark.problems) for task, benchmark in benchmarks.items()} == {
        "gsm8k": 1319, "math": 5000, "mgsm-zh": 250, "cmath": 1098, "ocw": 272, "sat": 32, "mmlu-stem": 3018,
        "gaokao-cloze": 118, "gaokao-mathqa": 351, "humaneval": 164, "mbpp": 500, "minif2f-valid": 244,
        "minif2f-test": 244,
    }  # fmt: skip
    for benchmark in benchmarks.values():
        first = 10 if benchmark.task == "mbpp" else 0  # task_id 11
        assert [problem.row for problem in benchmark.problems] == list(range(first, first + len(benchmark.problems)))
        assert all(problem.question.strip() and problem.reference.strip() for problem in benchmark.problems)
    assert len({problem.subject for problem in benchmarks["mmlu-stem"].problems}) == 18  # Hendrycks et al. 2020: STEM
    assert {problem.subject for problem in benchmarks["minif2f-test"].problems} == {"numbertheory", "other"}
    # Hendrycks et al. 2021 (arXiv 2103.03874): 7 subjects, 5 levels.
    subjects, levels = (
        Counter(getattr(problem, part) for problem in benchmarks["math"].problems) for part in ("subject", "level")
    )
    assert (len(subjects), sorted(levels)) == (7, [f"Level {level}" for level in range(1, 6)])
    assert {problem.level for problem in benchmarks["cmath"].problems} == {f"Grade {grade}" for grade in range(1, 7)}
    assert benchmarks["mgsm-zh"].problems[0].reference == benchmarks["gsm8k"].problems[0].reference == "18"


def test_a_benchmark_with_a_changed_byte_is_refused(shared_data: Path, tmp_path: Path) -> None:
    file = shutil.copy(shared_data / "eval/mgsm_zh.jsonl", tmp_path)
    content = Path(file).read_bytes()
    Path(file).write_bytes(content.replace(b'"answer": "18"', b'"answer": "19"', 1))
    with pytest.raises(DataError, match=r"not the published mgsm-zh(.|\n)*250 rows(.|\n)*165c3b67"):
        load_benchmarks(tmp_path, ["mgsm-zh"])


def test_a_missing_benchmark_is_reported_with_its_source(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gsm8k_test\.jsonl(.|\n)*deepseek-ai/DeepSeek-Math"):
        load_benchmarks(tmp_path, ["gsm8k"])


def test_custom_problems_have_a_language_each(tmp_path: Path) -> None:
    rows = [
        {"question": "How many?", "answer": 3, "subject": "counting"},
        {"question": "一共有几个苹果？", "answer": "4"},
    ]
    write_problems(tmp_path / "mine.jsonl", rows)
    (benchmark,) = load_benchmarks(tmp_path, ["mine.jsonl"])
    assert [(problem.task, problem.reference, problem.language) for problem in benchmark.problems] == [
        ("mine", "3", "en"),
        ("mine", "4", "zh"),
    ]
    assert benchmark.problems[0].subject == "counting"


@pytest.mark.parametrize(
    ("task", "row", "question", "reference"),
    [  # published rows, shortened; the questions as DeepSeek-Math's process_utils.py puts them
        (
            "sat",
            {"id": "2", "question": "How many?", "options": "A) -10 B) 0 C) 10 D) -10 and 10", "Answer": "D"},
            "How many?\nWhat of the following is the right choice? Explain your answer.\n"
            "(A) -10 (B) 0 (C) 10 (D) -10 and 10",
            "D",
        ),
        (
            "mmlu-stem",
            {"question": "Find it. ", "options": ["0", " 4", "2", 6], "answer": "B", "topic": "abstract_algebra"},
            "Find it.\nWhat of the following is the right choice? Explain your answer.\n(A) 0, (B) 4, (C) 2, (D) 6",
            "B",
        ),
        (
            "gaokao-mathqa",
            {"question": "则 $a=(\\quad)$\\\\\n", "options": ["(A)$-1$", "(B)1 ", "(C)$-3$", "(D)3"], "label": "C"},
            "则 $a=(\\quad)$\n从以下选项中选择:    (A)$-1$ (B)1 (C)$-3$ (D)3",
            "C",
        ),
        (
            "mbpp",
            {"text": "Add.", "test_setup_code": "one = 1", "test_list": ["assert f(one) == 2", "assert f(2) == 3"]},
            "Add. Your code should pass these tests:\n\nassert f(one) == 2\nassert f(2) == 3",
            "one = 1\nassert f(one) == 2\nassert f(2) == 3",
        ),
        (
            "minif2f-test",
            {
                "formal_statement": "theorem one:\n  shows True ",
                "informal_statement": "Show it.",
                "informal_proof": "Trivial.\n",
                "header": "theory one imports Main begin\n\n",
            },
            "(*### Problem\n\nShow it.\n\n### Solution\n\nTrivial. *)\n\nFormal:\ntheorem one:\n  shows True",
            "theory one imports Main begin\n\ntheorem one:\n  shows True",
        ),
    ],
)
def test_a_question_equals_that_of_the_papers_harness(
    task: str, row: dict[str, Any], question: str, reference: str
) -> None:
    asked = PUBLISHED[task].read_row(row)
    assert (asked.question, asked.reference) == (question, reference)


def test_the_keys_of_a_custom_row_decide_how_it_is_graded(tmp_path: Path) -> None:
    rows = [
        {"question": "def f(n):\n", "tests": "assert f(1) == 2"},
        {"question": "Formal:\ntheorem one: True", "statement": "theorem one: True"},
    ]
    write_problems(tmp_path / "mine.jsonl", rows)
    (benchmark,) = load_benchmarks(tmp_path, ["mine.jsonl"])
    assert [(problem.kind, problem.reference) for problem in benchmark.problems] == [
        ("tests", "assert f(1) == 2"),
        ("proof", "theorem one: True"),
    ]


@pytest.mark.parametrize(
    "line",
    [
        "no JSON", '{"question": "And the answer?"}', '{"question": 3, "answer": 3}', "[1]",
        '{"question": "?", "answer": 3, "tests": "assert 1"}', '{"question": "?", "tests": 3}',
    ],
)  # fmt: skip
def test_a_row_that_is_not_a_problem_is_reported_with_its_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "mine.jsonl").write_text('{"question": "How many?", "answer": 3}\n' + line + "\n")
    with pytest.raises(DataError, match=r"mine\.jsonl:2"):
        load_benchmarks(tmp_path, ["mine.jsonl"])


def test_custom_problems_cannot_have_a_benchmarks_name(tmp_path: Path) -> None:
    write_problems(tmp_path / "gsm8k.jsonl", [{"question": "How many?", "answer": 3}])
    with pytest.raises(UsageError, match="name of a benchmark"):
        load_benchmarks(tmp_path, ["gsm8k.jsonl"])
