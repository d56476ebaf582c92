"""The ids of the piece encoder are those of the `sentencepiece` library."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from megatron_dsmath.data.tokenizing.piece_encoder import BLOCK_CHARACTERS
from megatron_dsmath.data.tokenizing.sentencepiece_pieces import (
    BYTE_FALLBACK,
    DUMMY_PREFIX,
    ESCAPE_WHITESPACES,
    MODEL_TYPE,
    NORMALIZER,
    REMOVE_EXTRA_WHITESPACES,
    SEPARATOR,
    TRAINER,
    WHITESPACE_AS_SUFFIX,
    build_piece_encoder,
    build_splitter,
)

USER_DEFINED = "<eoh>"  # a piece of the model that is found in a text as a whole
KINDS = st.sampled_from(
    [
        *"\n\r\0 ▁\U0010ffff\U00100000\u3000\taé1½中가!≤，\u0301倀",
        "  ",
        "▁ ",
        " ▁",
        "ing",
        " the",
        "数学",
        "</s>",
        "<0x41>",
        USER_DEFINED,
        "<eo",
    ]
)
CHARACTERS = st.characters(exclude_categories=["Cs"])


def changed(model: bytes, message: int, field: int, value: int) -> bytes:
    """The model with another value of one field: of a field given twice the last counts."""
    content = bytes([field << 3, value]) if field < 16 else bytes([field << 3 & 0x7F | 0x80, field >> 4, value])
    return model + bytes([message << 3 | 2, len(content)]) + content


@pytest.fixture(scope="module")
def internlm(shared_data: Path) -> bytes:
    return (shared_data / "tokenizer" / "sentencepiece" / "internlm_bpe_103168.model").read_bytes()


@pytest.fixture(scope="module", params=[0, 1], ids=["no prefix", "dummy prefix"])
def model(request: pytest.FixtureRequest, internlm: bytes) -> bytes:
    return changed(internlm, NORMALIZER, DUMMY_PREFIX, request.param)  # with a prefix: as LLaMA's


@pytest.fixture(scope="module")
def theirs(model: bytes) -> Callable[[list[str]], list[list[int]]]:
    engine = sentencepiece.SentencePieceProcessor(model_proto=model)
    return lambda texts: [engine.encode(text) for text in texts]


@pytest.fixture(scope="module")
def ours(model: bytes) -> Callable[[list[str]], list[list[int]]]:
    encoder = build_piece_encoder(model)
    assert encoder is not None
    return lambda texts: encoder.encode(texts).to_lists()


Encode = Callable[[list[str]], list[list[int]]]


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(KINDS | CHARACTERS, max_size=20).map("".join), max_size=4))
def test_random_texts_get_the_ids_of_the_library(ours: Encode, theirs: Encode, texts: list[str]) -> None:
    assert ours(texts) == theirs(texts)


@pytest.mark.parametrize("step", [101, pytest.param(1, marks=pytest.mark.long)])
def test_every_character_gets_the_ids_of_the_library(ours: Encode, theirs: Encode, step: int) -> None:
    codes = [code for code in range(0, 0x110000, step) if not 0xD800 <= code < 0xE000]
    texts = [f"{chr(code)}a {chr(code)}{chr(code)}1{chr(code)}" for code in codes]
    assert ours(texts) == theirs(texts)


def test_long_texts_get_the_ids_of_the_library(ours: Encode, theirs: Encode) -> None:
    texts = ["数学 is 1 + " * (BLOCK_CHARACTERS // 5), " " * BLOCK_CHARACTERS, "a" * (1 << 16), "\0" * 1000, ""]
    assert ours(texts) == theirs(texts)


def test_the_prefix_is_added_to_a_text_once(internlm: bytes) -> None:
    text = "a" + "\nb" * BLOCK_CHARACTERS
    model = changed(internlm, NORMALIZER, DUMMY_PREFIX, 1)
    encoder = build_piece_encoder(model)
    assert encoder is not None
    assert encoder.encode([text]).to_lists() == [sentencepiece.SentencePieceProcessor(model_proto=model).encode(text)]


@pytest.mark.parametrize(
    ("message", "field", "value"),
    [
        (TRAINER, MODEL_TYPE, 1),
        (TRAINER, BYTE_FALLBACK, 0),
        (TRAINER, WHITESPACE_AS_SUFFIX, 1),
        (NORMALIZER, REMOVE_EXTRA_WHITESPACES, 1),
        (NORMALIZER, ESCAPE_WHITESPACES, 0),
    ],
)
def test_unsupported_models_have_no_splitter(internlm: bytes, message: int, field: int, value: int) -> None:
    assert build_splitter(internlm, ["a", "b"]) is not None
    assert build_splitter(changed(internlm, message, field, value), ["a", "b"]) is None


def test_a_vocabulary_with_the_separator_has_no_splitter(internlm: bytes) -> None:
    assert build_splitter(internlm, ["a", SEPARATOR]) is None


def test_unigram_models_have_no_piece_encoder(shared_data: Path) -> None:
    model = (shared_data / "tokenizer" / "sentencepiece" / "test_unigram_1000.model").read_bytes()
    assert build_piece_encoder(model) is None
