from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.data.sft.conversation import Conversation, Message, Row, parse_row
from megatron_dsmath.data.sft.formats import FORMATS, read_conversation, require_format
from megatron_dsmath.data.sft.template import ConversationEncoder, DeepSeekMathTemplate
from megatron_dsmath.data.tokenizing.tokenizer import load_tokenizer
from megatron_dsmath.errors import DataError
from megatron_dsmath.files.lines import Line
from tests.support.small_tokenizer import write_small_tokenizer

QUESTION = "若 $x+1=3$，求 x。\nUse Python."
ANSWER = "先算。\n```python\nprint(3-1)\n```\n```output\n2\n```\n答案是\\boxed{2}。"
SAME = {
    "messages": {
        "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": ANSWER}],
        "dataset": "tora",
    },
    "sharegpt": {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": ANSWER}]},
    "alpaca": {"instruction": "若 $x+1=3$，求 x。", "input": "Use Python.", "output": ANSWER},
    "mathinstruct": {"instruction": QUESTION, "output": ANSWER},
    "lila": {"Input": QUESTION, "Output Program": ANSWER, "Output Answer": ["2"]},
    "question_answer": {"question": QUESTION, "answer": ANSWER},
    "question_code": {"input": QUESTION, "code": ANSWER, "target": 2},
}
TURNS = [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}]
BAD: dict[str, tuple[Any, str]] = {
    "no message": ({"messages": []}, "not a list, or empty"),
    "messages that are text": ({"messages": "1?"}, "not a list, or empty"),
    "a turn that is text": ({"messages": ["1?", "1"]}, "a turn is not an object"),
    "no assistant": ({"messages": TURNS[:1]}, "no assistant message"),
    "an assistant alone": ({"messages": TURNS[1:]}, "do not alternate"),
    "two questions": ({"messages": [TURNS[0], *TURNS]}, "do not alternate"),
    "two answers": ({"messages": [*TURNS, TURNS[1]]}, "do not alternate"),
    "a question at the end": ({"messages": [*TURNS, TURNS[0]]}, "do not alternate"),
    "a system's text within": ({"messages": [*TURNS, {"role": "system", "content": "x"}, *TURNS]}, "do not alternate"),
    "an unknown role": ({"messages": [{"role": "human", "content": "1?"}, TURNS[1]]}, "the role is unknown"),
    "no role": ({"messages": [{"content": "1?"}, TURNS[1]]}, "the role is unknown"),
    "an unknown speaker": ({"conversations": [{"from": "alien", "value": "x"}]}, "the role is unknown"),
    "empty content": ({"messages": [TURNS[0], {"role": "assistant", "content": ""}]}, "content is empty"),
    "blank content": ({"messages": [{"role": "user", "content": " \n"}, TURNS[1]]}, "content is empty"),
    "no content": ({"messages": [TURNS[0], {"role": "assistant"}]}, "content is not text"),
    "content in parts": ({"messages": [{"role": "user", "content": [{"type": "text"}]}, TURNS[1]]}, "not text"),
    "a tool at the start": (
        {"messages": [{"role": "tool", "content": "1"}, *TURNS]},
        "does not follow an assistant",
    ),
    "a tool at the end": ({"messages": [*TURNS, {"role": "tool", "content": "1"}]}, "tool message is last"),
    "a fence that never closes": ({"question": "x", "answer": "```python\nx"}, "line 1: the fence never closes"),
    "a lone surrogate": ({"question": "\ud800", "answer": "x"}, "lone surrogate"),
    "an empty output": ({"instruction": "x", "output": ""}, "content is empty"),
    "a history without answers": ({"instruction": "x", "input": "", "output": "y", "history": [["x"]]}, "not pairs"),
    "no known fields": ({"text": "x"}, "no known format"),
    "no fields": ({}, "no known format"),
}


def read(fields: dict[str, Any]) -> Conversation:
    row = parse_row(Path("rows.jsonl"), line_of(json.dumps(fields).encode()))
    return read_conversation(row, require_format(row), is_detected=True)


def line_of(content: bytes) -> Line:
    return Line(7, content, len(content))


def test_one_conversation_gives_the_same_tokens_and_mask_in_every_format(tmp_path: Path) -> None:
    assert len(SAME) >= 5
    tokenizer = load_tokenizer(write_small_tokenizer(tmp_path))
    encoder = ConversationEncoder(DeepSeekMathTemplate(tokenizer), tokenizer)
    encoded = [encoder.encode([read(fields).messages]) for fields in SAME.values()]
    assert encoded[0].is_target.any() and not encoded[0].is_target.all()
    for other in encoded[1:]:
        assert other.tokens.tolist() == encoded[0].tokens.tolist()
        assert other.is_target.tolist() == encoded[0].is_target.tolist()


@pytest.mark.parametrize("name", SAME)
def test_a_format_is_detected_by_its_fields(name: str) -> None:
    assert require_format(Row(dict(SAME[name]), "row")) == name


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_refused_with_file_and_line(name: str) -> None:
    fields, what = BAD[name]
    with pytest.raises(DataError, match=what) as caught:
        read(fields)
    assert caught.value.where == "rows.jsonl:7"
    assert caught.value.expected and caught.value.fix


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "line is empty"),
        (b"{", "not JSON"),
        (b"[1]", "not a JSON object"),
        (b'{"question": "\xff", "answer": "x"}', "not UTF-8"),
        (b'{"question": "x", "question": "y", "answer": "z"}', "'question' is repeated"),
        (b'{"messages": [{"role": "user", "role": "user", "content": "x"}]}', "'role' is repeated"),
        (b'{"question": NaN, "answer": "x"}', "NaN"),
        (b"[" * 200_000, "nested too deeply"),
    ],
)
def test_a_line_that_is_not_a_row_is_refused_with_file_and_line(content: bytes, what: str) -> None:
    with pytest.raises(DataError, match=what) as caught:
        parse_row(Path("rows.jsonl"), line_of(content))
    assert str(caught.value.where).startswith("rows.jsonl:7")


def test_rows_of_two_formats_in_one_file_are_refused() -> None:
    row = Row({"question": "x", "answer": "y"}, "rows.jsonl:2")
    with pytest.raises(DataError, match="two formats"):
        read_conversation(row, "messages", is_detected=True)


def test_a_row_without_a_field_of_its_format_is_refused() -> None:
    with pytest.raises(DataError, match="the field is missing") as caught:
        read_conversation(Row({"question": "x"}, "rows.jsonl:2"), "question_answer", is_detected=True)
    assert caught.value.expected == "'answer'"


def test_a_given_format_is_not_detected() -> None:
    """An Alpaca file whose rows leave the input out looks like MathInstruct."""
    row = Row({"instruction": "x", "output": "y"}, "row")
    conversation = read_conversation(row, "alpaca", is_detected=False)
    assert conversation.messages == (Message("user", "x"), Message("assistant", "y"))
    with pytest.raises(DataError, match="missing"):
        read_conversation(row, "question_answer", is_detected=False)


@pytest.mark.parametrize(
    ("fields", "kind", "language", "topic"),
    [
        ({"question": "How many?", "answer": "2"}, "cot", "en", None),
        ({"question": "有几个？", "answer": "two"}, "cot", "zh", None),
        ({"question": "设 $\\frac{x}{2}=\\sqrt{y}$，求 x", "answer": "2"}, "cot", "zh", None),
        ({"question": "x", "answer": "```python\n1\n```"}, "pot", "en", None),
        ({"question": "x", "answer": "```output\n1\n```\n"}, "tool", "en", None),
        ({"source": "data/PoT/gsm_gpt4.json", "instruction": "x", "output": "1"}, "pot", "en", "gsm_gpt4"),
        ({"source": "data/CoT/aqua_rat.json", "instruction": "x", "output": "1"}, "cot", "en", "aqua_rat"),
        ({"Input": "x", "Output Program": ["print(1)"], "Output Answer": ["1"]}, "pot", "en", None),
        ({"Input": "x", "Output Program": [], "Output Answer": ["1"]}, "cot", "en", None),
        ({"input": "x", "code": "def solution(): pass"}, "pot", "en", None),
        ({"problem": "x", "solution": "1", "type": "Algebra"}, "cot", "en", "Algebra"),
        ({"question": "x", "answer": "1", "kind": "tool", "language": "zh", "topic": "数列"}, "tool", "zh", "数列"),
        ({"question": "x", "answer": "1", "kind": "other", "language": "fr"}, "cot", "en", None),
    ],
)
def test_kind_language_and_topic_are_from_the_row_or_detected(
    fields: dict[str, Any], kind: str, language: str, topic: str | None
) -> None:
    conversation = read(fields)
    assert (conversation.kind, conversation.language, conversation.topic) == (kind, language, topic)


def test_kind_and_language_of_a_recipe_override_the_row() -> None:
    row = Row({"question": "x", "answer": "1", "kind": "pot", "language": "en"}, "row")
    conversation = read_conversation(row, "question_answer", is_detected=True, kind="tool", language="zh")
    assert (conversation.kind, conversation.language) == ("tool", "zh")


def test_every_shape_is_detected_as_its_own_format() -> None:
    for name, form in FORMATS.items():
        for shape in form.shapes:
            assert require_format(Row(dict.fromkeys(shape), "row")) == name
