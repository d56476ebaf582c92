from __future__ import annotations

import json
import shutil
from argparse import Namespace
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
from megatron.core.tokenizers.text.utils.build_tokenizer import build_tokenizer

from megatron_dsmath.data.tokenizing.tokenizer import Tokenizer, load_tokenizer
from megatron_dsmath.errors import TokenizerError
from tests.support.small_tokenizer import BEGIN, END, TEXT, write_small_tokenizer

DEEPSEEK_BEGIN, DEEPSEEK_END = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
SENTENCEPIECE_MODELS = ("internlm_bpe_103168.model", "test_unigram_1000.model")
LITERALS = f"a{DEEPSEEK_END}b{DEEPSEEK_BEGIN} </s><s> c"


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_tokenizer(tmp_path_factory.mktemp("small"))


@pytest.fixture(scope="module")
def deepseek(shared_data: Path) -> Tokenizer:
    return load_tokenizer(shared_data / "tokenizer" / "deepseek_llm")


@pytest.fixture(scope="module")
def real_texts(shared_data: Path) -> list[str]:
    """Every string of the first rows of each file; test_tokenize.py has the whole files."""
    files = (path.open("rb") for path in (shared_data / "pretrain").glob("*.jsonl"))
    rows = [json.loads(line) for file in files for line in islice(file, 5)]
    return [value for row in rows for value in row.values() if isinstance(value, str)]


def megatron_tokenizer(model: Path, kind: str, **changes: object) -> Any:
    options = dict.fromkeys(("vocab_file", "merge_file", "tokenizer_special_tokens", "tokenizer_metadata"))
    flags = {
        "tokenizer_hf_use_fast": True,
        "trust_remote_code": False,
        "tokenizer_hf_include_special_tokens": False,
        "tokenizer_sentencepiece_legacy": False,
    }
    return build_tokenizer(
        Namespace(tokenizer_type=kind, tokenizer_model=str(model), **{**options, **flags, **changes})
    )


def test_the_46_golden_encodings_hold(shared_data: Path, deepseek: Tokenizer) -> None:
    folder = shared_data / "tokenizer" / "deepseek_llm"
    texts = (folder / "golden_inputs.txt").read_bytes().decode().split("\n__ggml_vocab_test__\n")[:46]
    golden = [[int(word) for word in line.split()] for line in (folder / "golden_ids.txt").read_text().split("\n")[:46]]
    assert len(texts) == len(golden) == 46
    assert sum(map(len, golden)) > 300
    assert deepseek.encode_batch(texts) == golden
    assert [deepseek.encode(text) for text in texts] == golden


def test_deepseek_special_tokens_have_the_ids_of_the_model(deepseek: Tokenizer) -> None:
    assert (deepseek.begin_of_document, deepseek.end_of_document) == (100_000, 100_001)
    assert deepseek.vocabulary_size == 100_015


def test_ids_are_those_of_the_tokenizers_library(shared_data: Path, deepseek: Tokenizer, real_texts: list[str]) -> None:
    theirs = tokenizers.Tokenizer.from_file(str(shared_data / "tokenizer" / "deepseek_llm" / "tokenizer.json"))
    encodings = theirs.encode_batch(real_texts, add_special_tokens=False)
    assert deepseek.encode_batch(real_texts) == [encoding.ids for encoding in encodings]


@pytest.mark.parametrize("model", SENTENCEPIECE_MODELS)
def test_ids_are_those_of_the_sentencepiece_library(shared_data: Path, real_texts: list[str], model: str) -> None:
    path = shared_data / "tokenizer" / "sentencepiece" / model
    theirs = sentencepiece.SentencePieceProcessor()
    theirs.Load(str(path))
    assert load_tokenizer(path).encode_batch(real_texts) == [theirs.EncodeAsIds(text) for text in real_texts]


@pytest.mark.parametrize("text", [LITERALS, "", " ", "\0", "\n\n x", "数学 1234", "ø÷ü", "\U0001f999 é́"])
def test_parse_special_gives_megatrons_ids(shared_data: Path, text: str) -> None:
    folder = shared_data / "tokenizer"
    cases = [("HuggingFaceTokenizer", folder / "deepseek_llm")]
    cases += [("SentencePieceTokenizer", folder / "sentencepiece" / model) for model in SENTENCEPIECE_MODELS]
    for kind, model in cases:
        theirs = megatron_tokenizer(model, kind)
        ours = load_tokenizer(model, parse_special=True)
        assert ours.encode(text) == theirs.tokenize(text)
        assert (ours.vocabulary_size, ours.end_of_document) == (theirs.vocab_size, theirs.eod)


def test_literals_of_special_tokens_are_plain_text(deepseek: Tokenizer) -> None:
    ids = deepseek.encode(LITERALS)
    assert not {deepseek.begin_of_document, deepseek.end_of_document} & set(ids)
    assert deepseek.decode(ids) == LITERALS


def test_parse_special_converts_literals_into_their_ids(shared_data: Path) -> None:
    parsing = load_tokenizer(shared_data / "tokenizer" / "deepseek_llm", parse_special=True)
    assert parsing.encode(f"{DEEPSEEK_BEGIN}{DEEPSEEK_END}") == [100_000, 100_001]


@pytest.mark.parametrize("parse_special", [False, True])
def test_sentencepiece_never_parses_control_symbols(shared_data: Path, parse_special: bool) -> None:
    path = shared_data / "tokenizer" / "sentencepiece" / SENTENCEPIECE_MODELS[0]
    tokenizer = load_tokenizer(path, parse_special=parse_special)
    assert (tokenizer.begin_of_document, tokenizer.end_of_document, tokenizer.vocabulary_size) == (1, 2, 103_168)
    assert not {1, 2} & set(tokenizer.encode("a</s><s>b"))


def test_decoding_gives_the_text_back(small: Path) -> None:
    tokenizer = load_tokenizer(small)
    assert tokenizer.decode(tokenizer.encode(TEXT)) == TEXT
    assert len(tokenizer.encode(TEXT)) < len(TEXT.encode())


def test_an_id_without_a_token_has_no_text(shared_data: Path, deepseek: Tokenizer) -> None:
    assert deepseek.decode([*deepseek.encode("ab"), 102_399]) == "ab"
    internlm = load_tokenizer(shared_data / "tokenizer" / "sentencepiece" / SENTENCEPIECE_MODELS[0])
    assert internlm.decode([*internlm.encode("ab"), 103_999]) == "ab"


def test_a_folder_and_its_file_give_the_same_tokenizer(small: Path) -> None:
    by_folder, by_file = load_tokenizer(small), load_tokenizer(small / "tokenizer.json")
    assert by_folder.fingerprint == by_file.fingerprint
    assert by_folder.files == by_file.files == (small / "tokenizer.json", small / "tokenizer_config.json")


def test_truncation_and_padding_of_the_file_do_not_cut_documents(small: Path, tmp_path: Path) -> None:
    engine = tokenizers.Tokenizer.from_file(str(small / "tokenizer.json"))
    engine.enable_truncation(4)
    engine.enable_padding(length=50)
    engine.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path, END).encode(TEXT) == load_tokenizer(small).encode(TEXT)


def test_the_end_of_a_document_can_be_named(small: Path, tmp_path: Path) -> None:
    shutil.copy(small / "tokenizer.json", tmp_path)
    named = load_tokenizer(tmp_path, BEGIN)
    assert named.end_of_document == load_tokenizer(small).begin_of_document
    assert named.begin_of_document is None


def test_a_bare_tokenizer_json_is_refused(small: Path, tmp_path: Path) -> None:
    shutil.copy(small / "tokenizer.json", tmp_path)
    with pytest.raises(TokenizerError, match="which token ends a document") as caught:
        load_tokenizer(tmp_path)
    assert "--eod-token" in str(caught.value.fix)


def test_an_end_that_is_not_in_the_vocabulary_is_refused(small: Path, shared_data: Path) -> None:
    for path in (small, shared_data / "tokenizer" / "sentencepiece" / SENTENCEPIECE_MODELS[1]):
        with pytest.raises(TokenizerError, match="'<nonsense>'"):
            load_tokenizer(path, "<nonsense>")


def test_the_fingerprint_depends_on_what_determines_the_ids(small: Path, tmp_path: Path) -> None:
    def changed(name: str, change: Callable[[dict[str, Any]], object]) -> str:
        content = json.loads((small / "tokenizer.json").read_text())
        change(content)
        (tmp_path / name).mkdir()
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(content, indent=7))
        return load_tokenizer(tmp_path / name, END).fingerprint

    fingerprint = load_tokenizer(small).fingerprint
    merges = "model", "merges"
    assert changed("same", lambda content: None) == fingerprint
    assert changed("truncated", lambda content: content.update(truncation=None)) == fingerprint
    assert changed("old", lambda content: content["model"].update(merges=_joined(content))) == fingerprint
    assert changed("swapped", lambda content: content[merges[0]][merges[1]].reverse()) != fingerprint
    assert changed("prefix", lambda content: content["pre_tokenizer"].update(add_prefix_space=True)) != fingerprint
    assert changed("added", lambda content: content["added_tokens"][0].update(lstrip=True)) != fingerprint


def _joined(content: dict[str, Any]) -> list[str]:
    return [" ".join(pair) for pair in content["model"]["merges"]]


def test_the_fingerprint_of_a_sentencepiece_model_is_its_hash(shared_data: Path) -> None:
    path = shared_data / "tokenizer" / "sentencepiece" / SENTENCEPIECE_MODELS[1]
    published = "4884d27bf50494e080aa99dbb868f27b68b6a3b6bd128da37ad6057c5e3cf5a2"  # the data's README
    assert load_tokenizer(path).fingerprint == published


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing/tokenizer.json", None, "nothing at this path"),
        ("notes.txt", b"hello", "a file named notes.txt"),
        ("tokenizer.json", b"{}", "cannot be loaded"),
        ("tokenizer.json", b"\xff\xfe", "cannot be loaded"),
        ("tokenizer.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git-LFS"),
        ("spiece.model", b"not a model", "cannot be loaded"),
        ("spiece.model", b"", "cannot be loaded"),
    ],
)
def test_a_file_that_is_not_a_tokenizer_is_refused(
    tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(TokenizerError, match=message):
        load_tokenizer(tmp_path / name)


@pytest.mark.parametrize("content", [b"[]", b"{", b"[" * 100_000])
def test_a_broken_configuration_is_refused(small: Path, tmp_path: Path, content: bytes) -> None:
    shutil.copy(small / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_bytes(content)
    with pytest.raises(TokenizerError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)


def test_a_folder_without_one_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="an empty folder"):
        load_tokenizer(tmp_path)
    for name in ("a.model", "b.model"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(TokenizerError, match=r"a\.model, b\.model"):
        load_tokenizer(tmp_path)
