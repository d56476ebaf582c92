"""The published benchmarks: file, number of rows, sha256, and how a row becomes a problem."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

Kind = Literal["answer", "tests", "proof"]
"""How an output is graded: by a reference answer (or the letter of a choice), by tests that a program must pass, or by
a statement that a proof must prove."""


class RowContent(NamedTuple):
    """The question of a row, its reference (answer, tests or statement), and its level and subject."""

    question: str
    reference: str
    level: str | None = None
    subject: str | None = None


class PublishedBenchmark(NamedTuple):
    """A benchmark. A file with other bytes is refused: its scores would not be comparable."""

    file: str
    rows: int
    sha256: str
    language: str
    source: str
    read_row: Callable[[Mapping[str, Any]], RowContent]
    kind: Kind = "answer"
    problem_rows: range | None = None
    """The rows that are problems, from 0; None: all rows."""


_DEEPSEEK_MATH = "deepseek-ai/DeepSeek-Math, evaluation/datasets"
_CHOOSE = "What of the following is the right choice? Explain your answer."


def _question_answer(row: Mapping[str, Any]) -> RowContent:
    return RowContent(row["question"], row["answer"])


def _math(row: Mapping[str, Any]) -> RowContent:
    return RowContent(row["problem"], row["solution"], row["level"], row["type"])


def _mgsm(row: Mapping[str, Any]) -> RowContent:
    return RowContent(row["messages"][0]["content"], row["answer"])


def _cmath(row: Mapping[str, Any]) -> RowContent:
    return RowContent(row["question"], row["golden"], f"Grade {row['grade']}")


def _ocw(row: Mapping[str, Any]) -> RowContent:
    return RowContent(row["problem"], row["answer"])


def _sat(row: Mapping[str, Any]) -> RowContent:
    options = re.sub(r" ([B-G])\) ", r" (\1) ", f"({row['options'].strip()}")
    return RowContent(f"{row['question'].strip()}\n{_CHOOSE}\n{options}", row["Answer"])


def _mmlu_stem(row: Mapping[str, Any]) -> RowContent:
    options = ", ".join(
        f"({letter}) {str(option).strip()}" for letter, option in zip("ABCD", row["options"], strict=True)
    )
    return RowContent(f"{row['question'].strip()}\n{_CHOOSE}\n{options}", row["answer"], subject=row["topic"])


def _gaokao_mathqa(row: Mapping[str, Any]) -> RowContent:
    options = " ".join(option.strip() for option in row["options"])
    question = row["question"].strip().rstrip("\\")
    return RowContent(f"{question}\n从以下选项中选择:    {options}", row["label"])


def _humaneval(row: Mapping[str, Any]) -> RowContent:
    return RowContent(row["prompt"], row["test"])


def _mbpp(row: Mapping[str, Any]) -> RowContent:
    tests = "\n".join(row["test_list"])
    question = f"{row['text']} Your code should pass these tests:\n\n{tests}"
    return RowContent(question, f"{row['test_setup_code']}\n{tests}".strip())


def _minif2f(row: Mapping[str, Any]) -> RowContent:
    statement = row["formal_statement"].strip()
    informal = f"{row['informal_statement'].strip()}\n\n### Solution\n\n{row['informal_proof'].strip()}"
    subject = "numbertheory" if "numbertheory" in statement else "other"  # as the harness chooses the shots
    question = f"(*### Problem\n\n{informal} *)\n\nFormal:\n{statement}"
    return RowContent(question, f"{row['header']}{statement}", subject=subject)


PUBLISHED = {
    "gsm8k": PublishedBenchmark(
        "gsm8k_test.jsonl",
        1319,
        "fd32e8e549626b0dcce350eec7bbace9c463ddbcfa1c0303ba5abe9122450839",
        "en",
        f"{_DEEPSEEK_MATH}/gsm8k/test.jsonl",
        _question_answer,
    ),
    "math": PublishedBenchmark(
        "math_test.jsonl",
        5000,
        "3371949f33dd702d04b43fddd7d53a028de0aaca0e76abb1b875a050297b3aa4",
        "en",
        "microsoft/ToRA, src/data/math/test.jsonl",
        _math,
    ),
    "mgsm-zh": PublishedBenchmark(
        "mgsm_zh.jsonl",
        250,
        "165c3b6753e8a8786183c27b9af7b7590d54dca4d0136edadb24d684c95bb50d",
        "zh",
        f"{_DEEPSEEK_MATH}/mgsm_zh/mgsm_zh.jsonl",
        _mgsm,
    ),
    "cmath": PublishedBenchmark(
        "cmath_test.jsonl",
        1098,
        "cabe17c127c3227912b3384f4755e180f3aa0d9e5865677e7e5e223439bf15eb",
        "zh",
        f"{_DEEPSEEK_MATH}/cmath/test.jsonl",
        _cmath,
    ),
    "ocw": PublishedBenchmark(
        "ocw_test.jsonl",
        272,
        "095ba49696fcd401474a5014e2fae5e6b0b8ec1939d8dded0343fcbdb0bf1a9b",
        "en",
        f"{_DEEPSEEK_MATH}/ocw/test.jsonl",
        _ocw,
    ),
    "sat": PublishedBenchmark(
        "sat_test.jsonl",
        32,
        "96720a1dc496ea72f80db55250290cf9c48e95b657ac2183b7deb1dc4627351f",
        "en",
        f"{_DEEPSEEK_MATH}/sat/test.jsonl",
        _sat,
    ),
    "mmlu-stem": PublishedBenchmark(
        "mmlu_stem_test.jsonl",
        3018,
        "1c918d1df6de635a0202c989705c34f19b0c4ad858cbdb27135cdfc7fd44f14a",
        "en",
        f"{_DEEPSEEK_MATH}/mmlu_stem/test.jsonl",
        _mmlu_stem,
    ),
    "gaokao-cloze": PublishedBenchmark(
        "gaokao_mathcloze.jsonl",
        118,
        "088675c147794970a3ed25c7147a3bbc59715d6813837d5f483f46dcb1b5008d",
        "zh",
        f"{_DEEPSEEK_MATH}/agieval/gaokao-mathcloze.jsonl",
        _question_answer,
    ),
    "gaokao-mathqa": PublishedBenchmark(
        "gaokao_mathqa.jsonl",
        351,
        "d246f12752d121289ef55cbf1bcf954243cefb65d110f71d09358e24065c808f",
        "zh",
        f"{_DEEPSEEK_MATH}/agieval/gaokao-mathqa.jsonl",
        _gaokao_mathqa,
    ),
    "humaneval": PublishedBenchmark(
        "humaneval_python.jsonl",
        164,
        "0eae07adadbb00d51962fdb78b9e2a26bfa8ade85dc54eb57cae9bffed2f5c54",
        "en",
        "deepseek-ai/DeepSeek-Coder, Evaluation/HumanEval/data/humaneval-python.jsonl",
        _humaneval,
        "tests",
    ),
    "mbpp": PublishedBenchmark(
        "mbpp.jsonl",
        974,
        "ccf64ceae9c5403bf50a044cb6d505bfd2a2963ee58338ba268fd65beab92a9f",
        "en",
        "deepseek-ai/DeepSeek-Coder, Evaluation/MBPP/data/mbpp.jsonl",
        _mbpp,
        "tests",
        range(10, 510),  # task_id 11 to 510: the test split
    ),
    "minif2f-valid": PublishedBenchmark(
        "minif2f_valid.jsonl",
        244,
        "6091dd4c4e64a514fb2cba3a99e86678f791e9f5cbd9810db619522e81603ed5",
        "en",
        f"{_DEEPSEEK_MATH}/minif2f/validation.jsonl",
        _minif2f,
        "proof",
    ),
    "minif2f-test": PublishedBenchmark(
        "minif2f_test.jsonl",
        244,
        "0b1ffa866b2d8eaff9ac00d8c4042bae915e2d153f3a600cf2c3b05193b0daef",
        "en",
        f"{_DEEPSEEK_MATH}/minif2f/test.jsonl",
        _minif2f,
        "proof",
    ),
}
