from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import sentencepiece
import tokenizers
from megatron.core.datasets import indexed_dataset as megatron

from megatron_dsmath.data.indexed import dataset as dataset_module
from megatron_dsmath.data.indexed.dataset import IndexedDataset
from megatron_dsmath.data.indexed.index_file import write_index
from megatron_dsmath.data.indexed.inspection import verify
from megatron_dsmath.data.tokenizing.tokenize import tokenize
from megatron_dsmath.data.tokenizing.tokenizer import load_tokenizer
from megatron_dsmath.errors import DataError, DsmathError, OutputError, TokenizerError, UsageError
from megatron_dsmath.files.atomic_files import OutputFile
from megatron_dsmath.files.progress import Progress
from tests.support.small_tokenizer import BEGIN, END, TEXT, write_small_tokenizer

PRETRAINING_FIELDS = {
    "arxiv_sample": "text",
    "c4_en_sample": "text",
    "humaneval_python": "prompt",
    "mbpp": "code",
    "proofnet_lean3_test": "nl_proof",
    "proofnet_lean3_valid": "formal_statement",
    "zh_wiki_cmrc2018": "text",
}
TEXTS = [TEXT[: 7 * i % len(TEXT)] * (i % 5) for i in range(500)]  # some of them empty


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_tokenizer(tmp_path_factory.mktemp("small"))


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return write_corpus(tmp_path / "corpus.jsonl", TEXTS)


def write_corpus(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


def outputs_of(prefix: Path) -> dict[str, bytes]:
    return {path.name.removeprefix(prefix.name): path.read_bytes() for path in prefix.parent.glob(f"{prefix.name}.*")}


def documents_of(prefix: Path) -> list[list[int]]:
    dataset = IndexedDataset(prefix)
    return [dataset.document(number).tolist() for number in range(dataset.document_count)]


def with_end(ids: list[int], end: int) -> list[int]:
    return [*ids, end] if ids else ids


@pytest.mark.parametrize("name", PRETRAINING_FIELDS)
@pytest.mark.parametrize("model", ["deepseek_llm", "internlm_bpe_103168.model", "test_unigram_1000.model"])
def test_megatron_reads_the_real_texts_token_for_token(
    shared_data: Path, tmp_path: Path, name: str, model: str
) -> None:
    path, field = shared_data / "pretrain" / f"{name}.jsonl", PRETRAINING_FIELDS[name]
    if model == "deepseek_llm":
        tokenizer = shared_data / "tokenizer" / model
        engine = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
        encode, end = (lambda text: engine.encode_batch_fast([text], add_special_tokens=False)[0].ids), 100_001
    else:
        tokenizer = shared_data / "tokenizer" / "sentencepiece" / model
        encode, end = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer)).EncodeAsIds, 2
    report = tokenize([path], tokenizer, tmp_path / "out", field=field)
    texts = [json.loads(line)[field] for line in path.open("rb")]
    expected = [[*ids, end] for text in texts if (ids := encode(text))]
    theirs = megatron.IndexedDataset(str(tmp_path / "out"))
    assert [theirs[i].tolist() for i in range(len(theirs))] == expected
    assert (report.documents, report.tokens) == (len(texts), sum(map(len, expected)))
    assert verify(tmp_path / "out").holds


def test_the_output_is_the_same_for_any_number_of_workers(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    parts = [write_corpus(tmp_path / f"part{i}.jsonl", TEXTS * 5) for i in range(2)]  # several batches
    for workers in (1, 2, 3):
        tokenize([corpus, *parts], tokenizer, tmp_path / f"out{workers}", workers=workers)
    assert outputs_of(tmp_path / "out1") == outputs_of(tmp_path / "out2") == outputs_of(tmp_path / "out3")
    ids = load_tokenizer(tokenizer)
    expected = [with_end(ids.encode(text), ids.end_of_document) for text in TEXTS * 11]
    assert documents_of(tmp_path / "out1") == expected


@pytest.mark.parametrize(("workers", "seed"), [(1, None), (2, 3)])
def test_several_fields_give_the_same_datasets_as_separate_runs(
    tokenizer: Path, tmp_path: Path, workers: int, seed: int | None
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    rows = [{"text": text, "title": text[:9]} for text in TEXTS]
    corpus.write_text("".join(json.dumps(row) + "\n" for row in rows))
    fields = {"text": "_text_document", "title": "_title_document"}
    report = tokenize([corpus], tokenizer, tmp_path / "both", field=fields, workers=workers, shuffle_seed=seed)
    for field, ending in fields.items():
        alone = tokenize([corpus], tokenizer, tmp_path / field, field=field, shuffle_seed=seed)
        assert outputs_of(tmp_path / f"both{ending}") == outputs_of(tmp_path / field)
        assert report.tokens_of_dataset[f"{tmp_path}/both{ending}"] == alone.tokens
    assert (report.documents, report.tokens) == (len(TEXTS), sum(report.tokens_of_dataset.values()))


def test_a_line_without_one_of_the_fields_is_bad_for_all_fields(tokenizer: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "a", "title": "b"}\n{"text": "a"}\n{"title": "b", "text": "a"}\n')
    fields = {"text": "_text", "title": "_title"}
    with pytest.raises(DataError, match="missing") as caught:
        tokenize([corpus], tokenizer, tmp_path / "out", field=fields)
    assert caught.value.where == f"{corpus}:2"
    assert not list(tmp_path.glob("out*"))
    report = tokenize([corpus], tokenizer, tmp_path / "out", field=fields, bad_lines="skip")
    assert (report.documents, report.bad_lines) == (2, 1)
    assert len(documents_of(tmp_path / "out_text")) == len(documents_of(tmp_path / "out_title")) == 2
    assert (tmp_path / "out.bad_lines.jsonl").read_text().count("\n") == 1


def test_no_dataset_has_its_name_before_all_are_on_the_disk(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full when the second .idx is written: the first dataset is not there either."""
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text('{"text": "a", "title": "b"}\n')
    written: list[OutputFile] = []

    def write(file: OutputFile, *parts: Any) -> None:
        written.append(file)
        if len(written) == 2:
            raise OutputError("the output cannot be written")
        write_index(file, *parts)

    monkeypatch.setattr(dataset_module, "write_index", write)
    with pytest.raises(OutputError):
        tokenize([corpus], tokenizer, tmp_path / "out", field={"text": "_1", "title": "_2"})
    assert len(written) == 2
    assert not list(tmp_path.glob("out*"))


def test_an_empty_text_is_an_empty_document(tokenizer: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", ["a", "", "b"])
    tokenize([corpus], tokenizer, tmp_path / "out")
    assert IndexedDataset(tmp_path / "out").document_indices.tolist() == [0, 1, 1, 2]


def test_bos_and_eod_are_added_if_requested(tokenizer: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", ["a"])
    engine = tokenizers.Tokenizer.from_file(str(tokenizer / "tokenizer.json"))
    begin, end, a = (engine.token_to_id(token) for token in (BEGIN, END, "a"))
    cases: list[tuple[dict[str, Any], list[int]]] = [
        ({}, [a, end]),
        ({"append_eod": False}, [a]),
        ({"prepend_bos": True}, [begin, a, end]),
        ({"prepend_bos": True, "append_eod": False}, [begin, a]),
        ({"eod_token": BEGIN}, [a, begin]),
    ]
    for options, expected in cases:
        tokenize([corpus], tokenizer, tmp_path / "out", **options)
        assert documents_of(tmp_path / "out") == [expected]


def test_literals_of_special_tokens_stay_text_unless_parsed(tokenizer: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", [END])
    end = load_tokenizer(tokenizer).end_of_document
    tokenize([corpus], tokenizer, tmp_path / "plain")
    tokenize([corpus], tokenizer, tmp_path / "parsed", parse_special=True)
    assert documents_of(tmp_path / "plain")[0].count(end) == 1
    assert documents_of(tmp_path / "parsed") == [[end, end]]


def test_compressed_files_give_the_same_tokens(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(corpus.read_bytes()))
    for path in (corpus, tmp_path / "corpus.jsonl.gz"):
        tokenize([path], tokenizer, tmp_path / path.name)
    assert documents_of(tmp_path / "corpus.jsonl") == documents_of(tmp_path / "corpus.jsonl.gz")


def test_the_sidecar_describes_the_data(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    tokenize([corpus], tokenizer, tmp_path / "out")
    sidecar = json.loads((tmp_path / "out.json").read_text())
    ids = load_tokenizer(tokenizer)
    assert sidecar["documents"] == len(TEXTS)
    assert sidecar["tokens"] == IndexedDataset(tmp_path / "out").token_count
    assert sidecar["vocabulary_size"] == ids.vocabulary_size
    assert sidecar["tokenizer"] == {
        "name": f"{tokenizer.name}/tokenizer.json",
        "fingerprint": ids.fingerprint,
        "end_of_document": ids.end_of_document,
        "begin_of_document": ids.begin_of_document,
    }
    assert sidecar["bad_lines"] == 0
    assert sidecar["options"]["append_eod"] is True
    assert sidecar["files"] == ["corpus.jsonl"]


@pytest.mark.parametrize("workers", [1, 2])
def test_a_bad_line_stops_the_run_and_leaves_no_output(tokenizer: Path, tmp_path: Path, workers: int) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", TEXTS)
    with corpus.open("a") as file:
        file.write("{oops\n[]\n")
    with pytest.raises(DataError, match="not JSON") as caught:
        tokenize([corpus], tokenizer, tmp_path / "out", workers=workers)
    assert caught.value.where == f"{corpus}:{len(TEXTS) + 1}:2"
    assert not list(tmp_path.glob("out*"))


@pytest.mark.parametrize("workers", [1, 2])
def test_every_line_is_a_document_or_in_the_quarantine(tokenizer: Path, tmp_path: Path, workers: int) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_bytes(b'{"text": "a"}\n{oops\n{"text": "b"}\n\n{"text": 1}\n{"text": "c"}\n')
    report = tokenize([corpus], tokenizer, tmp_path / "out", workers=workers, bad_lines="skip")
    assert (report.documents, report.bad_lines, report.quarantine) == (3, 3, tmp_path / "out.bad_lines.jsonl")
    rows = [json.loads(row) for row in (tmp_path / "out.bad_lines.jsonl").open()]
    assert [(row["line"], row["content"]) for row in rows] == [(2, "{oops"), (4, ""), (5, '{"text": 1}')]
    assert json.loads((tmp_path / "out.json").read_text())["bad_lines"] == 3


def test_the_quarantine_of_an_earlier_run_is_removed(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    assert tokenize([corpus], tokenizer, tmp_path / "out", bad_lines="skip").bad_lines == 0
    assert (tmp_path / "out.bad_lines.jsonl").read_bytes() == b""
    tokenize([corpus], tokenizer, tmp_path / "out")
    assert not (tmp_path / "out.bad_lines.jsonl").exists()


def test_a_shuffle_keeps_every_document_and_depends_only_on_the_seed(
    corpus: Path, tokenizer: Path, tmp_path: Path
) -> None:
    runs = {"plain": (None, 1), "seed1": (1, 1), "again": (1, 2), "seed2": (2, 1)}
    for name, (seed, workers) in runs.items():
        tokenize([corpus], tokenizer, tmp_path / name, shuffle_seed=seed, workers=workers)
    orders = {name: documents_of(tmp_path / name) for name in runs}
    assert orders["seed1"] == orders["again"]
    assert len({str(order) for order in orders.values()}) == 3
    assert all(sorted(order) == sorted(orders["plain"]) for order in orders.values())
    assert not list(tmp_path.glob("*unshuffled*"))
    assert verify(tmp_path / "seed1").holds


def test_a_shuffle_moves_documents_far(tokenizer: Path, tmp_path: Path) -> None:
    """Of 1,000 positions drawn at random, a document moves 333 on average (a third of the length), give or take 8."""
    corpus = write_corpus(tmp_path / "corpus.jsonl", [f"{number:04d}" for number in range(1000)])
    tokenize([corpus], tokenizer, tmp_path / "out", shuffle_seed=5, append_eod=False)
    decode = load_tokenizer(tokenizer).decode
    distances = [abs(int(decode(ids)) - position) for position, ids in enumerate(documents_of(tmp_path / "out"))]
    assert 300 < sum(distances) / 1000 < 366


def test_progress_reaches_the_size_of_the_input(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    seen: list[Progress] = []
    report = tokenize([corpus, corpus], tokenizer, tmp_path / "out", report_progress=seen.append)
    size = 2 * corpus.stat().st_size
    assert seen[-1] == Progress(report.documents, report.tokens, size, size)
    assert report.input_bytes == size


def test_invalid_arguments_are_refused_and_nothing_is_written(corpus: Path, tokenizer: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "tokenizer.json").write_bytes((tokenizer / "tokenizer.json").read_bytes())
    overwritten = write_corpus(tmp_path / "corpus.json", TEXTS)
    empty = write_corpus(tmp_path / "empty.jsonl", [""])
    before = sorted(path.name for path in tmp_path.iterdir())
    refusals: list[tuple[type[DsmathError], str, dict[str, Any]]] = [
        (UsageError, "no input file", {"files": []}),
        (UsageError, "number of workers", {"workers": 0}),
        (UsageError, "fail or skip", {"bad_lines": "ignore"}),
        (UsageError, "a dataset of its own", {"field": {}}),
        (UsageError, "a dataset of its own", {"field": {"text": "", "title": ""}}),
        (DataError, "no such file", {"files": [corpus, tmp_path / "missing.jsonl"]}),
        (DataError, "contains no tokens", {"files": [empty]}),
        (TokenizerError, "no tokenizer found", {"tokenizer": tmp_path / "missing"}),
        (TokenizerError, "which token ends", {"tokenizer": bare}),
        (TokenizerError, "begins a document", {"tokenizer": bare, "eod_token": END, "prepend_bos": True}),
        (OutputError, "overwrite an input", {"files": [overwritten], "out": tmp_path / "corpus"}),
        (OutputError, "cannot be written", {"out": corpus / "out"}),
    ]
    for kind, message, change in refusals:
        arguments = {"files": [corpus], "tokenizer": tokenizer, "out": tmp_path / "out", **change}
        with pytest.raises(kind, match=message):
            tokenize(**arguments)
        assert sorted(path.name for path in tmp_path.iterdir()) == before


def test_a_full_disk_is_one_clear_error(tokenizer: Path, tmp_path: Path) -> None:
    """A limit on the file size simulates a full disk: the system refuses the write in the same call."""
    corpus = write_corpus(tmp_path / "corpus.jsonl", TEXTS * 50)
    code = f"""
import resource, signal
from megatron_dsmath.data.tokenizing.tokenize import tokenize
from megatron_dsmath.errors import DsmathError, show
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    tokenize([{str(corpus)!r}], {str(tokenizer)!r}, {str(tmp_path / "out")!r})
except DsmathError as error:
    raise SystemExit(show(error))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 78
    assert run.stderr.startswith("error[output]: the output cannot be written")
    assert str(tmp_path) in run.stderr
    assert not list(tmp_path.glob("out*"))


@pytest.fixture
def running(tokenizer: Path, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The tool with two workers, stopped after it has written its first batch."""
    corpus = write_corpus(tmp_path / "corpus.jsonl", TEXTS * 20)
    code = f"""
import time
from megatron_dsmath.data.tokenizing.tokenize import tokenize

def stop(progress):
    print("the first batch is written", flush=True)
    time.sleep(600)

if __name__ == "__main__":
    tokenize([{str(corpus)!r}], {str(tokenizer)!r}, {str(tmp_path / "out")!r}, workers=2, report_progress=stop)
"""
    (tmp_path / "run.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in [str(Path.cwd()), *sys.path] if path)}
    command = [sys.executable, tmp_path / "run.py"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"the first batch is written\n"
        yield process
        process.kill()


def test_a_killed_run_leaves_no_dataset_and_a_second_run_gives_the_same_bytes(
    running: subprocess.Popen[bytes], tokenizer: Path, tmp_path: Path
) -> None:
    workers = psutil.Process(running.pid).children(recursive=True)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    _, alive = psutil.wait_procs(workers, timeout=10)
    assert not alive
    assert {path.suffix for path in tmp_path.glob("out*")} == {".partial"}
    for name in ("out", "undisturbed"):
        tokenize([tmp_path / "corpus.jsonl"], tokenizer, tmp_path / name)
    assert outputs_of(tmp_path / "out") == outputs_of(tmp_path / "undisturbed")
    assert len(outputs_of(tmp_path / "out")) == 3
