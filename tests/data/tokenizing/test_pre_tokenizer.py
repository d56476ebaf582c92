"""The cuts are those of the `tokenizers` library, for DeepSeek's pre-tokenizers and similar ones."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers

from megatron_dsmath.data.tokenizing.pre_tokenizer import PreTokenizerSplitter, build_splitter

# As `deepseek-ai/deepseek-llm-7b-base` has them, and as llama.cpp spells them out.
WITH_PROPERTIES = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+")
WITH_RANGES = ("[\r\n]", r"\s?[A-Za-zµÀ-ÖØ-öø-ƺ𐐀-𐑏]+", r"\s?[!-/:-~！-／：-～‘-‟　-。]+", r"\s+$", "[一-龥ࠀ-一가-퟿]+")
# One of each kind of character that the patterns tell apart, and of those that are two kinds at once.
KINDS = "\n\ra é1½中가! 　\t\u2003≤ἀ，Ａ\u0301\x00"
ADDED = "ø÷"


def chain_of(patterns: Iterable[str], *others: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    ends = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    return pre_tokenizers.Sequence([*splits, *(others or (pre_tokenizers.Digits(individual_digits=True),)), *ends])


def splitter_of(theirs: pre_tokenizers.PreTokenizer, isolated: str = "") -> PreTokenizerSplitter:
    ours = build_splitter(theirs, isolated)
    assert ours is not None
    return ours


def pieces(chain: PreTokenizerSplitter, text: str) -> list[str]:
    cuts = np.zeros(len(text) + 1, np.bool_)
    cuts[[0, -1]] = True
    chain.mark_cuts(np.frombuffer(text.encode("utf-32-le"), np.uint32), cuts)
    positions = np.flatnonzero(cuts).tolist()
    return [text[begin:end] for begin, end in pairwise(positions)]


def their_pieces(theirs: pre_tokenizers.PreTokenizer, text: str) -> list[str]:
    return [text[begin:end] for _, (begin, end) in theirs.pre_tokenize_str(text)]


@pytest.fixture(scope="module", params=["properties", "ranges", "deepseek"])
def theirs(request: pytest.FixtureRequest) -> pre_tokenizers.PreTokenizer:
    if request.param == "deepseek":
        folder: Path = request.getfixturevalue("shared_data")
        path = folder / "tokenizer" / "deepseek_llm" / "tokenizer.json"
        return tokenizers.Tokenizer.from_file(str(path)).pre_tokenizer
    return chain_of(WITH_PROPERTIES if request.param == "properties" else WITH_RANGES)


@pytest.fixture(scope="module")
def ours(theirs: pre_tokenizers.PreTokenizer) -> PreTokenizerSplitter:
    return splitter_of(theirs)


def test_cuts_of_short_sequences_are_those_of_the_library(
    theirs: pre_tokenizers.PreTokenizer, ours: PreTokenizerSplitter
) -> None:
    text = "\n".join("".join(kinds) for kinds in product(KINDS, repeat=3))
    assert pieces(ours, text) == their_pieces(theirs, text)
    for kinds in product(KINDS, repeat=2):  # at the very end of a text, where no line feed helps
        text = "a1 " + "".join(kinds)
        assert pieces(ours, text) == their_pieces(theirs, text)


@pytest.mark.long
def test_cuts_of_longer_sequences_are_those_of_the_library(
    theirs: pre_tokenizers.PreTokenizer, ours: PreTokenizerSplitter
) -> None:
    for first in KINDS:
        text = "\n".join(first + "".join(kinds) for kinds in product(KINDS, repeat=4))
        assert pieces(ours, text) == their_pieces(theirs, text)


def neighbourhoods(step: int) -> Iterator[str]:
    """Every `step`-th character that a text may hold, alone and between others, some thousands at a time."""
    codes = [code for code in range(0, sys.maxunicode + 1, step) if not 0xD800 <= code < 0xE000]
    for start in range(0, len(codes), 4096):
        characters = map(chr, codes[start : start + 4096])
        yield "\n".join(f"{one}\na{one}a\n {one} \n≤{one}{one}1\n中{one}é" for one in characters)


def test_cuts_around_many_characters_are_those_of_the_library(
    theirs: pre_tokenizers.PreTokenizer, ours: PreTokenizerSplitter
) -> None:
    for text in neighbourhoods(step=97):
        assert pieces(ours, text) == their_pieces(theirs, text)


@pytest.mark.long
def test_cuts_around_every_character_are_those_of_the_library(
    theirs: pre_tokenizers.PreTokenizer, ours: PreTokenizerSplitter
) -> None:
    for text in neighbourhoods(step=1):
        assert pieces(ours, text) == their_pieces(theirs, text)


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from(KINDS) | st.characters(exclude_categories=["Cs"]), max_size=30))
def test_cuts_of_random_texts_are_those_of_the_library(
    theirs: pre_tokenizers.PreTokenizer, ours: PreTokenizerSplitter, text: str
) -> None:
    assert pieces(ours, text) == their_pieces(theirs, text)


def test_cuts_of_long_runs_are_those_of_the_library(
    theirs: pre_tokenizers.PreTokenizer, ours: PreTokenizerSplitter
) -> None:
    for text in ("a" * 100_000, "中" * 50_000, "1" * 10_000, "≤" + " " * 2_000, "≤ " * 10_000, "é a" * 10_000):
        assert pieces(ours, text) == their_pieces(theirs, text)


def test_an_isolated_character_is_in_no_set_and_ends_the_text_of_the_patterns() -> None:
    # By hand: ø is a letter, ÷ is not; the spaces before ø are at the end of a text of the patterns.
    chain = splitter_of(chain_of(WITH_RANGES), ADDED)
    assert pieces(chain, "aøb ÷≤  ø a") == ["a", "ø", "b", " ", "÷", "≤", "  ", "ø", " a"]


def test_adjacent_texts_do_not_affect_each_other() -> None:
    chain = splitter_of(chain_of(WITH_RANGES))
    texts = ["≤ ", " a", "b", "", "c  "]
    text = "".join(texts)
    cuts = np.zeros(len(text) + 1, np.bool_)
    cuts[np.cumsum([0, *map(len, texts)])] = True
    chain.mark_cuts(np.frombuffer(text.encode("utf-32-le"), np.uint32), cuts)
    alone = [piece for text in texts for piece in pieces(chain, text)]
    positions = np.flatnonzero(cuts).tolist()
    assert [text[begin:end] for begin, end in pairwise(positions)] == alone


@pytest.mark.parametrize(
    "theirs",
    [
        None,
        pre_tokenizers.ByteLevel(),
        chain_of(WITH_RANGES[1:]),  # a `$` could stop at a line feed within a piece
        chain_of([*WITH_RANGES, r"\p{Lu}?\p{L}+"]),
        chain_of([*WITH_RANGES, "[a-z&&[aeiou]]+"]),
        chain_of(["[\r\n]", "[a]", "[b]", "[c]", "[d]", "[e]", "[f]"]),  # more sets than a byte has bits
        chain_of(WITH_RANGES, pre_tokenizers.Digits(individual_digits=False)),
        chain_of(WITH_RANGES, pre_tokenizers.Split(Regex("[a]"), "removed")),
        chain_of(WITH_RANGES, pre_tokenizers.Split(Regex("[a]"), "isolated", invert=True)),
        chain_of(WITH_RANGES, pre_tokenizers.Split("[a]", "isolated")),
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("[\n]"), "isolated")]),
        pre_tokenizers.Sequence([pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]),
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("[\n]"), "isolated"), pre_tokenizers.ByteLevel()]),
        pre_tokenizers.Sequence([]),
    ],
)
def test_other_pre_tokenizers_have_no_splitter(theirs: pre_tokenizers.PreTokenizer | None) -> None:
    assert build_splitter(theirs, "") is None
