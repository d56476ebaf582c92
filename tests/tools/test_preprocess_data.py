"""Megatron-LM's tools against ours. `theirs` is their loop (json, tokenizer, builder), on megatron-core's own parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import pytest
from megatron.core.datasets import indexed_dataset as megatron
from megatron.core.tokenizers.text.utils.build_tokenizer import build_tokenizer

from megatron_dsmath.data.indexed.dataset import IndexedDataset
from tests.support.small_tokenizer import BEGIN, END, TEXT, write_small_tokenizer

REPOSITORY = Path(__file__).parents[2]
LITERALS = "a</s>b<s> <｜end▁of▁sentence｜>x"
SENTENCEPIECE_TYPES = ("SentencePieceTokenizer", "GPTSentencePieceTokenizer", "Llama2Tokenizer")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_tokenizer(tmp_path_factory.mktemp("small"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    texts = ["", LITERALS, TEXT, f"{BEGIN}{END}", *(TEXT[: 3 * i] for i in range(40))]
    return write_corpus(tmp_path / "corpus.jsonl", texts)


def write_corpus(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text, "title": text[:5]}) + "\n" for text in texts))
    return path


def preprocess_theirs(corpus: Path, prefix: Path, kind: str, model: Path, key: str = "text", **flags: bool) -> None:
    """Megatron-LM's Encoder.encode and Partition.process_json_file, for one key and one process."""
    append_eod, include_special = flags.get("append_eod", True), flags.get("include_special_tokens", False)
    arguments = Namespace(
        tokenizer_type=kind,
        tokenizer_model=str(model),
        vocab_file=None,
        merge_file=None,
        tokenizer_special_tokens=None,
        tokenizer_metadata=None,
        tokenizer_hf_use_fast=True,
        tokenizer_hf_include_special_tokens=include_special,
        tokenizer_sentencepiece_legacy=False,
        trust_remote_code=False,
    )
    engine = build_tokenizer(arguments)
    dtype = megatron.DType.optimal_dtype(engine.vocab_size)
    builder = megatron.IndexedDatasetBuilder(f"{prefix}_{key}_document.bin", dtype=dtype)
    for line in corpus.open(encoding="utf-8"):
        ids = list(engine.tokenize(json.loads(line)[key]))
        lengths = [len(ids)] if ids else []
        if ids and append_eod:
            ids.append(engine.eod)
            lengths[-1] += 1
        builder.add_document(ids, lengths)
    builder.finalize(f"{prefix}_{key}_document.idx")


def run_tool(name: str, *flags: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, REPOSITORY / "tools" / name, *map(str, flags)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def preprocess_ours(corpus: object, prefix: Path, kind: str, model: Path, *flags: object) -> str:
    options = ("--input", corpus, "--output-prefix", prefix, "--tokenizer-type", kind, "--tokenizer-model", model)
    run = run_tool("preprocess_data.py", *options, "--log-interval", 1000, *flags)
    assert run.returncode == 0, run.stderr
    return run.stdout


def files_of(prefix: Path, key: str = "text") -> tuple[bytes, bytes]:
    return tuple(Path(f"{prefix}_{key}_document{ending}").read_bytes() for ending in (".bin", ".idx"))


@pytest.mark.parametrize("append_eod", [True, False])
def test_hugging_face_bytes_are_megatrons(corpus: Path, tokenizer: Path, tmp_path: Path, append_eod: bool) -> None:
    kind = "HuggingFaceTokenizer"
    preprocess_theirs(corpus, tmp_path / "theirs", kind, tokenizer, append_eod=append_eod)
    flags = ["--append-eod"] if append_eod else []
    preprocess_ours(corpus, tmp_path / "ours", kind, tokenizer, "--workers", 2, *flags)
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "theirs")


@pytest.mark.parametrize("include", [True, False])
def test_deepseek_bytes_are_megatrons_with_and_without_bos(shared_data: Path, tmp_path: Path, include: bool) -> None:
    rows = (shared_data / "pretrain" / "zh_wiki_cmrc2018.jsonl").read_text().splitlines()[:100]
    corpus = write_corpus(tmp_path / "corpus.jsonl", [LITERALS, "", *(json.loads(row)["text"] for row in rows)])
    kind, model = "HuggingFaceTokenizer", shared_data / "tokenizer" / "deepseek_llm"
    preprocess_theirs(corpus, tmp_path / "theirs", kind, model, include_special_tokens=include)
    flag = "--tokenizer-hf-include-special-tokens" if include else "--tokenizer-hf-no-include-special-tokens"
    preprocess_ours(corpus, tmp_path / "ours", kind, model, "--append-eod", flag)
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "theirs")
    first = IndexedDataset(tmp_path / "ours_text_document")[0].tolist()
    assert (first[0] == 100_000) == include
    assert 100_001 in first[:-1]  # the literal was parsed, as Megatron does


@pytest.mark.parametrize("kind", SENTENCEPIECE_TYPES)
def test_sentencepiece_bytes_are_megatrons(corpus: Path, shared_data: Path, tmp_path: Path, kind: str) -> None:
    for name in ("internlm_bpe_103168.model", "test_unigram_1000.model"):
        model = shared_data / "tokenizer" / "sentencepiece" / name
        preprocess_theirs(corpus, tmp_path / f"theirs{name}", kind, model)
        preprocess_ours(corpus, tmp_path / f"ours{name}", kind, model, "--append-eod")
        assert files_of(tmp_path / f"ours{name}") == files_of(tmp_path / f"theirs{name}")


def test_every_key_gets_its_dataset(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    kind, keys = "HuggingFaceTokenizer", ("text", "title")
    output = preprocess_ours(corpus, tmp_path / "ours", kind, tokenizer, "--append-eod", "--json-keys", *keys)
    for key, line in zip(keys, output.splitlines(), strict=True):
        preprocess_theirs(corpus, tmp_path / "theirs", kind, tokenizer, key)
        assert files_of(tmp_path / "ours", key) == files_of(tmp_path / "theirs", key)
        assert line.startswith(f"{tmp_path}/ours_{key}_document: 44 documents")


def test_input_may_be_a_folder_or_a_glob(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parts"
    folder.mkdir()
    rows = corpus.read_text().splitlines(keepends=True)
    for number, part in enumerate((rows[:10], rows[10:])):
        (folder / f"part{number}.jsonl").write_text("".join(part))
    (folder / "notes.txt").write_text("not a corpus")
    for name, given in {"file": corpus, "folder": folder, "glob": folder / "part*.jsonl"}.items():
        preprocess_ours(given, tmp_path / name, "HuggingFaceTokenizer", tokenizer, "--append-eod")
    assert files_of(tmp_path / "file") == files_of(tmp_path / "folder") == files_of(tmp_path / "glob")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--input": "missing*.jsonl"}, "no input file was found"),
        ({"--tokenizer-type": "Llama2Tokenizer"}, "does not have the given type"),
        ({"--tokenizer-model": "missing"}, "no tokenizer found"),
        ({"--json-keys": "body"}, "the field is missing"),
    ],
)
def test_a_mistake_is_one_clear_error(
    corpus: Path, tokenizer: Path, tmp_path: Path, change: dict[str, str], message: str
) -> None:
    flags = {
        "--input": corpus,
        "--output-prefix": tmp_path / "out",
        "--tokenizer-type": "HuggingFaceTokenizer",
        "--tokenizer-model": tokenizer,
    }
    run = run_tool("preprocess_data.py", *(part for flag in {**flags, **change}.items() for part in flag))
    assert (run.returncode, run.stdout) == (78, "")
    assert run.stderr.startswith("error[")
    assert message in run.stderr
    assert not list(tmp_path.glob("out*"))


def test_merged_bytes_are_megatrons(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    preprocess_theirs(corpus, folder / "b", "HuggingFaceTokenizer", tokenizer)
    preprocess_ours(corpus, folder / "a", "HuggingFaceTokenizer", tokenizer)
    builder = megatron.IndexedDatasetBuilder(f"{tmp_path}/theirs_text_document.bin", dtype=megatron.numpy.uint16)
    for prefix in ("a_text_document", "b_text_document"):
        builder.add_index(str(folder / prefix))
    builder.finalize(f"{tmp_path}/theirs_text_document.idx")
    run = run_tool("merge_datasets.py", "--input", folder, "--output-prefix", tmp_path / "ours_text_document")
    assert run.returncode == 0, run.stderr
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "theirs")


def test_merging_an_empty_folder_is_one_clear_error(tmp_path: Path) -> None:
    run = run_tool("merge_datasets.py", "--input", tmp_path, "--output-prefix", tmp_path / "out")
    assert (run.returncode, run.stdout) == (78, "")
    assert "there is no dataset to merge" in run.stderr
