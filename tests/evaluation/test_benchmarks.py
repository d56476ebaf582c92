from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import pytest

from megatron_dsmath.errors import DataError, UsageError
from megatron_dsmath.evaluation.benchmarks import PUBLISHED, load
from tests.evaluation.scripted import write_problems


def test_every_row_of_every_benchmark_becomes_a_problem(shared_data: Path) -> None:
    benchmarks = {benchmark.task: benchmark for benchmark in load(shared_data / "eval", list(PUBLISHED))}
    # DeepSeekMath's evaluation_results.json counts as many samples of each.
    assert {task: len(benchmark.problems) for task, benchmark in benchmarks.items()} == {
        "gsm8k": 1319,
        "math": 5000,
        "mgsm-zh": 250,
        "cmath": 1098,
    }
    for benchmark in benchmarks.values():
        assert [problem.row for problem in benchmark.problems] == list(range(benchmark.rows))
        assert all(problem.question.strip() and problem.reference.strip() for problem in benchmark.problems)
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
    with pytest.raises(DataError, match=r"not the mgsm-zh that was published(.|\n)*250 rows(.|\n)*165c3b67"):
        load(tmp_path, ["mgsm-zh"])


def test_a_benchmark_that_is_not_there_says_where_it_is_from(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gsm8k_test\.jsonl(.|\n)*deepseek-ai/DeepSeek-Math"):
        load(tmp_path, ["gsm8k"])


def test_ones_own_problems_have_a_language_each(tmp_path: Path) -> None:
    rows = [
        {"question": "How many?", "answer": 3, "subject": "counting"},
        {"question": "一共有几个苹果？", "answer": "4"},
    ]
    write_problems(tmp_path / "mine.jsonl", rows)
    (benchmark,) = load(tmp_path, ["mine.jsonl"])
    assert [(problem.task, problem.reference, problem.language) for problem in benchmark.problems] == [
        ("mine", "3", "en"),
        ("mine", "4", "zh"),
    ]
    assert benchmark.problems[0].subject == "counting"


@pytest.mark.parametrize("line", ["no JSON", '{"question": "And the answer?"}', '{"question": 3, "answer": 3}', "[1]"])
def test_a_row_that_is_no_problem_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "mine.jsonl").write_text('{"question": "How many?", "answer": 3}\n' + line + "\n")
    with pytest.raises(DataError, match=r"mine\.jsonl:2"):
        load(tmp_path, ["mine.jsonl"])


def test_ones_own_problems_do_not_pass_for_a_benchmark(tmp_path: Path) -> None:
    write_problems(tmp_path / "gsm8k.jsonl", [{"question": "How many?", "answer": 3}])
    with pytest.raises(UsageError, match="name of a benchmark"):
        load(tmp_path, ["gsm8k.jsonl"])
