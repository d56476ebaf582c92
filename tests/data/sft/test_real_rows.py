"""The rows of ToRA, GSM-Hard, GSM8K and TAL-SCQ5K: exactly their target tokens, decoded."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.data.sft.build_set import build
from megatron_dsmath.data.sft.example_encoder import Options
from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.data.sft.sources import sources_from_files
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer, load_tokenizer

SOURCES = ("tora_corpus_examples", "gsm_hard_pot", "gsm8k_train", "tal_scq5k_cn_train")
END = "<｜end▁of▁sentence｜>"


@pytest.fixture(scope="module")
def tokenizer(shared_data: Path) -> Tokenizer:
    return load_tokenizer(shared_data / "tokenizer" / "deepseek_llm")


@pytest.fixture(scope="module")
def examples(shared_data: Path, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Examples:
    paths = [shared_data / "sft" / f"{name}.jsonl" for name in SOURCES]
    prefix = tmp_path_factory.mktemp("real") / "set"
    build(sources_from_files(paths), tokenizer.path, prefix, Options())
    return Examples(prefix)


def rows_of(examples: Examples, source: str, shared_data: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    lines = (shared_data / "sft" / f"{source}.jsonl").read_text(encoding="utf-8").splitlines()
    is_of_source = examples.names("source").index(source) == examples.column("source")
    for number in is_of_source.nonzero()[0].tolist():
        yield number, json.loads(lines[examples.column("line")[number] - 1])


def runs(examples: Examples, number: int, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """The text of an example, cut where the loss mask changes: (text, whether its tokens are targets)."""
    tokens, is_target = examples.read(number)
    pairs = zip(tokens.tolist(), is_target.tolist(), strict=True)
    return [
        (tokenizer.decode([token for token, _ in run]), is_target)
        for is_target, run in groupby(pairs, lambda pair: pair[1])
    ]


def as_decoded(text: str) -> str:
    """13 letters of this vocabulary do not come back (huggingface/tokenizers#1424)."""
    return re.sub("[øöúÿõ÷ûýÀùÁþü]", "\N{REPLACEMENT CHARACTER}", text)


def test_every_row_is_an_example(examples: Examples) -> None:
    assert [int((examples.column("source") == index).sum()) for index in range(4)] == [30, 1319, 7473, 3000]


def test_calls_of_the_tool_in_tora_are_targets_and_its_outputs_are_not(
    examples: Examples, tokenizer: Tokenizer, shared_data: Path
) -> None:
    """By the text alone: an output block is "```output\\n", what has no fence in it, "\\n```\\n"."""
    calls = 0
    for number, row in rows_of(examples, "tora_corpus_examples", shared_data):
        question, answer = (message["content"] for message in row["messages"])
        parts = re.split(r"(?<=```output)(\n(?:(?!```).*\n)*```\n)", f" {answer}{END}")
        assert len(parts) == 2 * answer.count("```output") + 1
        calls += answer.count("```output")
        expected = [(f"<｜begin▁of▁sentence｜>User: {question}\n\nAssistant:", False)]
        expected += [(text, index % 2 == 0) for index, text in enumerate(parts)]
        assert runs(examples, number, tokenizer) == expected
    assert calls == 25


@pytest.mark.parametrize(
    ("source", "question", "answer"), [("gsm_hard_pot", "input", "code"), ("gsm8k_train", "question", "answer")]
)
def test_programs_and_chains_of_thought_are_targets_and_questions_are_not(
    examples: Examples, tokenizer: Tokenizer, shared_data: Path, source: str, question: str, answer: str
) -> None:
    for number, row in rows_of(examples, source, shared_data):
        answered = f" {row[answer]}{END}"
        asked = f"<｜begin▁of▁sentence｜>User: {row[question]}\n\nAssistant:"
        assert runs(examples, number, tokenizer) == [(as_decoded(asked), False), (as_decoded(answered), True)]


def test_chinese_analyses_are_targets_and_questions_are_not(
    examples: Examples, tokenizer: Tokenizer, shared_data: Path
) -> None:
    for number, row in rows_of(examples, "tal_scq5k_cn_train", shared_data):
        (asked, first), (answered, second) = runs(examples, number, tokenizer)
        assert (first, second) == (False, True)
        assert as_decoded(row["problem"].strip()) in asked and asked.endswith("\n\nAssistant:")
        assert answered.startswith(as_decoded(" " + row["answer_analysis"][0].strip()))
        assert answered.endswith(f"\\boxed{{{row['answer_value']}}}。{END}")


def test_every_end_of_an_answer_is_a_target(examples: Examples, tokenizer: Tokenizer) -> None:
    for number in range(len(examples)):
        tokens, is_target = examples.read(number)
        ends = tokens == tokenizer.end_of_document
        assert ends.sum() == 1 and is_target[ends].all()


def test_languages_and_kinds_are_those_of_the_sources(examples: Examples) -> None:
    kinds, languages, sources = (examples.column(name) for name in ("kind", "language", "source"))
    assert set(kinds[sources == 1].tolist()) == {1} and set(kinds[sources == 2].tolist()) == {0}
    assert (kinds[sources == 0] == 2).sum() == 25  # five of the 30 answer without the tool
    assert not languages[sources < 3].any()
    assert languages[sources == 3].mean() > 0.99  # a few questions are asked in both
