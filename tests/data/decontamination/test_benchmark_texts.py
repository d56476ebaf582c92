from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.data.decontamination.benchmark_texts import read_benchmark
from megatron_dsmath.errors import DataError

# Of each real file: fields with questions, fields with answers, and rows, as the data's README describes it.
REAL = {
    "gsm8k_test": ({"question"}, {"answer", "cot"}, 1319),
    "gsm8k_test_openai": ({"question"}, {"answer"}, 1319),
    "math_test": ({"problem"}, {"solution"}, 5000),
    "mgsm_zh": ({"messages"}, {"answer"}, 250),
    "cmath_test": ({"question"}, {"golden"}, 1098),
    "gaokao_mathcloze": ({"question"}, {"answer"}, 118),
    "gaokao_mathqa": ({"question"}, set(), 351),
    "mmlu_stem_test": ({"question"}, {"answer"}, 3018),
    "ocw_test": ({"problem"}, {"solution", "answer"}, 272),
    "sat_test": ({"question"}, {"Answer"}, 32),
    "minif2f_test": ({"formal_statement", "informal_statement"}, {"informal_proof"}, 244),
    "minif2f_valid": ({"formal_statement", "informal_statement"}, {"informal_proof"}, 244),
}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", REAL)
def test_questions_and_answers_of_real_benchmarks_are_found(shared_data: Path, name: str) -> None:
    benchmark = read_benchmark(shared_data / "eval" / f"{name}.jsonl")
    questions, answers, rows = REAL[name]
    assert {text.field for text in benchmark.texts if text.is_question} == questions
    assert {text.field for text in benchmark.texts if not text.is_question} == answers
    assert benchmark.rows == rows
    assert {text.row for text in benchmark.texts} == set(range(1, rows + 1))


def test_a_conversation_has_questions_of_the_user_and_answers_of_the_assistant(tmp_path: Path) -> None:
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant")] + [{"role": "user"}, "more"]
    benchmark = read_benchmark(write(tmp_path / "b.jsonl", {"messages": turns}))
    assert [(text.text, text.is_question) for text in benchmark.texts] == [
        ("system", True),
        ("user", True),
        ("assistant", False),
        ("more", True),
    ]


def test_a_list_gives_a_text_for_each_string(tmp_path: Path) -> None:
    benchmark = read_benchmark(write(tmp_path / "b.jsonl", {"answer_analysis": ["one", "", 2, "three"]}))
    assert [(text.text, text.is_question) for text in benchmark.texts] == [("one", False), ("three", False)]


def test_fields_can_be_named(tmp_path: Path) -> None:
    path = write(tmp_path / "b.jsonl", {"question": "q", "options": ["a", "b"], "solution": "s"})
    texts = read_benchmark(path, ["options", "solution"]).texts
    assert [(text.field, text.text, text.is_question) for text in texts] == [
        ("options", "a", True),
        ("options", "b", True),
        ("solution", "s", False),
    ]


def test_rows_without_text_are_counted(tmp_path: Path) -> None:
    rows = [{"question": "q", "passage": None, "id": 1}, {"question": " ", "answer": 18, "id": 2}]
    benchmark = read_benchmark(write(tmp_path / "b.jsonl", *rows))
    assert benchmark.rows_without_text == {"passage": 1, "id": 2, "question": 1, "answer": 1}


def test_a_compressed_benchmark_is_read(tmp_path: Path) -> None:
    path = tmp_path / "b.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"question": "q"}\n'))
    assert [text.text for text in read_benchmark(path).texts] == ["q"]


@pytest.mark.parametrize(
    ("line", "found"),
    {
        "cut off": (b'{"question": "x', "Unterminated string"),
        "empty": (b"", "Expecting value"),
        "a list": (b'["question"]', "list"),
        "Latin-1": ('{"question": "é"}'.encode("latin-1"), "can't decode byte 0xe9"),
        "byte order mark": (b'\xef\xbb\xbf{"question": "x"}', "BOM"),
        "lone surrogate": (b'{"question": "\\ud800"}', "surrogates not allowed"),
        "200,000 lists deep": (b"[" * 200_000, "recursion"),
        "5,000 digits": (b'{"n": ' + b"1" * 5000 + b"}", "digits"),
    }.values(),
)
def test_an_invalid_line_is_refused_with_its_number(tmp_path: Path, line: bytes, found: str) -> None:
    path = tmp_path / "b.jsonl"
    path.write_bytes(b'{"question": "good"}\n' + line + b"\n")
    with pytest.raises(DataError, match="not a row of a benchmark") as raised:
        read_benchmark(path)
    assert raised.value.where == f"{path}:2"
    assert found in str(raised.value.found)


@pytest.mark.parametrize("fields", [None, ["text"]])
def test_a_benchmark_without_a_text_is_refused(tmp_path: Path, fields: list[str] | None) -> None:
    path = write(tmp_path / "b.jsonl", {"id": 1, "options": ["a"], "answer": 3})
    with pytest.raises(DataError, match=r"(?s)no text to compare with.*'id', 'options', 'answer'.*--benchmark-fields"):
        read_benchmark(path, fields)
