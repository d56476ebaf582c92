"""Conversations written out by hand, with marks around the targets: tests/golden/conversations.txt."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path

import pytest
import tokenizers

from megatron_dsmath.data.sft.conversation import Conversation, Row
from megatron_dsmath.data.sft.formats import read_conversation, require_format
from megatron_dsmath.data.sft.template import ConversationEncoder, DeepSeekMathTemplate
from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer, load_tokenizer
from tests.data.sft import golden
from tests.support.small_tokenizer import write_small_tokenizer

CONVERSATIONS = golden.conversations()


def conversation_of(written: golden.Written) -> Conversation:
    row = Row(written.row, written.title)
    return read_conversation(row, require_format(row), is_detected=True)


def tokens_of(written: golden.Written, tokenizer: Tokenizer) -> list[tuple[int, bool]]:
    encoder = ConversationEncoder(DeepSeekMathTemplate(tokenizer), tokenizer)
    encoded = encoder.encode([conversation_of(written).messages])
    return list(zip(encoded.tokens.tolist(), encoded.is_target.tolist(), strict=True))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return load_tokenizer(write_small_tokenizer(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def deepseek(shared_data: Path) -> Tokenizer:
    return load_tokenizer(shared_data / "tokenizer" / "deepseek_llm")


@pytest.fixture(scope="module")
def library(deepseek: Tokenizer) -> tokenizers.Tokenizer:
    engine = tokenizers.Tokenizer.from_file(str(deepseek.path))
    engine.encode_special_tokens = True
    return engine


def test_there_are_at_least_60_in_both_languages_and_of_every_kind() -> None:
    assert len(CONVERSATIONS) >= 60
    labels = {(one.language, one.kind) for one in map(conversation_of, CONVERSATIONS)}
    assert {("en", "cot"), ("en", "pot"), ("en", "tool"), ("zh", "cot"), ("zh", "tool")} <= labels


@pytest.mark.parametrize("written", CONVERSATIONS, ids=lambda written: written.title)
def test_the_targets_are_the_text_between_the_marks(written: golden.Written, small: Tokenizer) -> None:
    signs = {small.begin_of_document: golden.BEGIN, small.end_of_document: golden.END}
    marked = ""
    for (is_target, is_special), run in groupby(tokens_of(written, small), lambda token: (token[1], token[0] in signs)):
        ids = [identifier for identifier, _ in run]
        text = "".join(signs[identifier] for identifier in ids) if is_special else small.decode(ids)
        marked += f"⟦{text}⟧" if is_target else text
    assert marked.replace("⟧⟦", "") == written.marked


@pytest.mark.parametrize("written", CONVERSATIONS, ids=lambda written: written.title)
def test_tokens_and_mask_are_those_of_the_tokenizers_library(
    written: golden.Written, deepseek: Tokenizer, library: tokenizers.Tokenizer
) -> None:
    assert tokens_of(written, deepseek) == golden.expected_tokens(written.marked, library)


def test_the_golden_tokens_are_up_to_date(library: tokenizers.Tokenizer) -> None:
    assert golden.TOKENS.read_bytes().decode() == golden.token_file(library)
