"""The ids of the piece encoder are those of the `tokenizers` library."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, models, normalizers, pre_tokenizers

from megatron_dsmath.data.tokenizing.hugging_face_pieces import added_literals, build_piece_encoder
from tests.support.small_tokenizer import BEGIN, END, TEXT, write_small_tokenizer

ADDED_CHARACTERS = "øöúÿõ÷ûýÀùÁþü"  # ids 100002 to 100014 of DeepSeek's vocabulary
PATTERNS = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
CHARACTERS = st.characters(exclude_categories=["Cs"])
KINDS = st.sampled_from([*"\n\r\0 \u3000\t\u2003aé1½中가!≤，\u0301", *ADDED_CHARACTERS, "  ", "ing", "数学", END])


def ids_of(engine: tokenizers.Tokenizer, texts: list[str]) -> list[list[int]]:
    return [engine.encode_batch_fast([text], add_special_tokens=False)[0].ids for text in texts]


@pytest.fixture(scope="module")
def deepseek(shared_data: Path) -> tokenizers.Tokenizer:
    engine = tokenizers.Tokenizer.from_file(str(shared_data / "tokenizer" / "deepseek_llm" / "tokenizer.json"))
    engine.encode_special_tokens = True
    return engine


@pytest.fixture(scope="module")
def by_pieces(deepseek: tokenizers.Tokenizer) -> Callable[[list[str]], list[list[int]]]:
    encoder = build_piece_encoder(deepseek)
    assert encoder is not None
    return lambda texts: encoder.encode(texts).to_lists()


@pytest.fixture
def small(tmp_path: Path) -> tokenizers.Tokenizer:
    """A small vocabulary behind a chain of DeepSeek's kind; special tokens are plain text."""
    engine = tokenizers.Tokenizer.from_file(str(write_small_tokenizer(tmp_path) / "tokenizer.json"))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in PATTERNS]
    digits, as_bytes = pre_tokenizers.Digits(True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    engine.pre_tokenizer = pre_tokenizers.Sequence([*splits, digits, as_bytes])
    engine.encode_special_tokens = True
    return engine


@settings(max_examples=400, deadline=None)
@given(st.lists(st.lists(KINDS | CHARACTERS, max_size=20).map("".join), max_size=4))
def test_random_texts_get_the_ids_of_the_library(
    deepseek: tokenizers.Tokenizer, by_pieces: Callable[[list[str]], list[list[int]]], texts: list[str]
) -> None:
    assert by_pieces(texts) == ids_of(deepseek, texts)


@pytest.mark.parametrize("step", [101, pytest.param(1, marks=pytest.mark.long)])
def test_every_character_gets_the_ids_of_the_library(
    deepseek: tokenizers.Tokenizer, by_pieces: Callable[[list[str]], list[list[int]]], step: int
) -> None:
    texts = [chr(code) for code in range(0, sys.maxunicode + 1, step) if not 0xD800 <= code < 0xE000]
    assert by_pieces(texts) == ids_of(deepseek, texts)


def test_the_added_characters_get_their_ids(by_pieces: Callable[[list[str]], list[list[int]]]) -> None:
    assert by_pieces([ADDED_CHARACTERS, *ADDED_CHARACTERS]) == [
        list(range(100_002, 100_015)),
        *([identifier] for identifier in range(100_002, 100_015)),
    ]


def test_very_long_pieces_get_the_ids_of_the_library(
    deepseek: tokenizers.Tokenizer, by_pieces: Callable[[list[str]], list[list[int]]]
) -> None:
    texts = ["a" * (1 << 20), "数学" * (1 << 16), " " * (1 << 16), "≤" * (1 << 16), "x", ""]
    assert by_pieces(texts) == ids_of(deepseek, texts)


def test_every_byte_has_its_character(small: tokenizers.Tokenizer) -> None:
    encoder = build_piece_encoder(small)
    assert encoder is not None
    # Every byte of UTF-8 occurs in one of these.
    codes = *range(0x800), *range(0x800, 0xD800, 0x3F), *range(0xE000, 0x10000, 0x3F), *range(0x10000, 0x110000, 0xFFF)
    texts = [chr(code) for code in codes]
    assert len({byte for text in texts for byte in text.encode()}) == 0x100 - 13  # C0, C1, F5 to FF never occur
    assert encoder.encode(texts).to_lists() == ids_of(small, texts)


def test_literals_of_special_tokens_are_plain_text(small: tokenizers.Tokenizer) -> None:
    encoder = build_piece_encoder(small)
    assert encoder is not None
    assert added_literals(small) == ()
    texts = [f"{BEGIN}{TEXT}{END}", END]
    assert encoder.encode(texts).to_lists() == ids_of(small, texts)


def test_added_literals_are_the_tokens_that_the_engine_searches_for(small: tokenizers.Tokenizer) -> None:
    small.add_tokens([AddedToken("<code>"), AddedToken("ß")])
    assert added_literals(small) == ("<code>",)
    small.encode_special_tokens = False
    assert set(added_literals(small)) == {"<code>", BEGIN, END}


def dropout(engine: tokenizers.Tokenizer) -> None:
    engine.model.dropout = 0.1


def normalizer(engine: tokenizers.Tokenizer) -> None:
    engine.normalizer = normalizers.NFC()


def other_model(engine: tokenizers.Tokenizer) -> None:
    engine.model = models.WordLevel({"a": 0}, unk_token="a")


def other_chain(engine: tokenizers.Tokenizer) -> None:
    engine.pre_tokenizer = pre_tokenizers.ByteLevel()


def stripping_token(engine: tokenizers.Tokenizer) -> None:
    engine.add_tokens([AddedToken("ß", lstrip=True)])


def shielded_character(engine: tokenizers.Tokenizer) -> None:
    engine.add_tokens([AddedToken("ß")])
    engine.add_special_tokens([AddedToken("<ß>", special=True)])


@pytest.mark.parametrize("change", [dropout, normalizer, other_model, other_chain, stripping_token, shielded_character])
def test_unsupported_tokenizers_have_no_piece_encoder(
    small: tokenizers.Tokenizer, change: Callable[[tokenizers.Tokenizer], None]
) -> None:
    assert build_piece_encoder(small) is not None
    change(small)
    assert build_piece_encoder(small) is None
