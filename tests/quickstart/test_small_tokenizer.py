from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.data.tokenizing.tokenizer import load_tokenizer
from megatron_dsmath.errors import DataError
from megatron_dsmath.quickstart.small_tokenizer import BEGIN_OF_SENTENCE, END_OF_SENTENCE, train_tokenizer

VOCABULARY = 1024
# Letters of many scripts, joined emoji, control characters, spaces at the end, what DeepSeek's own cannot restore.
ODD_TEXTS = [
    "",
    " ",
    "a  \n\n\tb\r\n",
    "naïve ÷ öüþ ǅungla",
    "👩‍👩‍👧 🇨🇳",
    "漢字かな 한국어 ไทย עברית",
    "\x00\x7f\u2028",
    "x=1234567 \n ",
    "𝓝 𝔸",
]


@pytest.fixture(scope="module")
def folder(corpora: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tokenizer(list(corpora.values()), tmp_path_factory.mktemp("tokenizer"), VOCABULARY)


def splitter(folder: Path) -> Any:
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(folder / "tokenizer.json")).pre_tokenizer


def documents(file: Path) -> Iterator[str]:
    for line in file.read_text(encoding="utf-8").splitlines():
        yield " ".join(value for value in json.loads(line).values() if isinstance(value, str))


def test_the_vocabulary_has_the_size_asked_for_and_ends_with_the_sentence_marks(folder: Path) -> None:
    ours = load_tokenizer(folder)
    assert ours.vocabulary_size == VOCABULARY
    assert (ours.begin_of_document, ours.end_of_document) == (VOCABULARY - 2, VOCABULARY - 1)


def test_every_text_comes_back_from_its_tokens(folder: Path, corpora: dict[str, Path]) -> None:
    ours = load_tokenizer(folder)
    for text in [*ODD_TEXTS, *(text for path in corpora.values() for text in documents(path))]:
        assert ours.decode(ours.encode(text)) == text


def test_text_is_split_as_deepseek_splits_it(folder: Path, shared_data: Path) -> None:
    ours, theirs = splitter(folder), splitter(shared_data / "tokenizer" / "deepseek_llm")
    files = sorted((shared_data / "pretrain").glob("*.jsonl"))
    assert files
    for text in [*ODD_TEXTS, *(text[:5000] for file in files for text in islice(documents(file), 100))]:
        assert ours.pre_tokenize_str(text) == theirs.pre_tokenize_str(text)


def test_digits_and_newlines_are_split_off_and_words_keep_their_space(folder: Path) -> None:
    text = "In 1984,\n\n中文 二 the end"
    split = [text[start:end] for _, (start, end) in splitter(folder).pre_tokenize_str(text)]
    assert split == ["In", " ", "1", "9", "8", "4", ",", "\n", "\n", "中文", " ", "二", " the", " end"]


def test_transformers_loads_it_and_agrees(folder: Path, corpora: dict[str, Path]) -> None:
    from transformers import AutoTokenizer

    theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    assert (theirs.bos_token, theirs.eos_token) == (BEGIN_OF_SENTENCE, END_OF_SENTENCE)
    for text in [*ODD_TEXTS, *list(documents(corpora["deepseekmath_corpus"]))[:50]]:
        assert theirs(text).input_ids == [VOCABULARY - 2, *ours.encode(text)]
        assert theirs.decode(ours.encode(text)) == text


def test_conversations_are_written_as_deepseek_math_writes_them(folder: Path) -> None:
    from transformers import AutoTokenizer

    messages = [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "Sure?"},
    ]
    rendered = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    # DeepSeek-Math's README: <bos>User: {q}\n\nAssistant: {a}<eos>User: {q}\n\nAssistant:
    expected = "<｜begin▁of▁sentence｜>User: 1+1?\n\nAssistant: 2<｜end▁of▁sentence｜>User: Sure?\n\nAssistant:"
    assert rendered == expected


def test_training_again_on_one_thread_gives_the_same_bytes(
    folder: Path, corpora: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    again = train_tokenizer(list(corpora.values()), tmp_path, VOCABULARY)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_little_text_gives_fewer_tokens_and_still_every_byte(tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text('{"text": "aaaa"}\n')
    ours = load_tokenizer(train_tokenizer([tmp_path / "few.jsonl"], tmp_path / "tokenizer", VOCABULARY))
    # 256 bytes, two sentence marks, and the merges aa and aaaa.
    assert ours.vocabulary_size == 256 + 2 + 2
    assert ours.decode(ours.encode("漢字 🇨🇳")) == "漢字 🇨🇳"


def test_a_corpus_that_is_not_jsonl_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    with pytest.raises(DataError, match=r"bad\.jsonl:2"):
        train_tokenizer([tmp_path / "bad.jsonl"], tmp_path / "tokenizer")
    assert not (tmp_path / "tokenizer").exists()
