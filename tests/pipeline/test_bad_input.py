"""What a user can hand us that is wrong: one clear error each, exit code 78, and nothing half-written.

Weights that do not fit, and disks that fill up while a run saves, are in tests/training.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from megatron_dsmath.cli import main
from megatron_dsmath.data.indexed.dataset import IndexedWriter
from megatron_dsmath.data.indexed.index_file import HEADER
from tests.support.corpora import write_inputs, write_run_file
from tests.support.ranks import run_ranks
from tests.training.ranks import dsmath, rows_of, status_of


@pytest.fixture(scope="module")
def whole_inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("whole"))


@pytest.fixture
def inputs(whole_inputs: Path, tmp_path: Path) -> Path:
    """To be spoilt."""
    return shutil.copytree(whole_inputs, tmp_path / "inputs")


@pytest.fixture
def run_file(inputs: Path, tmp_path: Path) -> Path:
    return write_run_file(inputs, tmp_path / "run", tmp_path / "run.yaml")


def everything_in(folder: Path) -> dict[str, bytes | None]:
    return {str(path): path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Runs a command that must be refused in one error and leave everything as it was; returns the error."""

    def run(*arguments: object) -> str:
        before = everything_in(tmp_path)
        assert main([str(argument) for argument in arguments]) == 78
        said = capsys.readouterr().err
        assert len(re.findall(r"^error\[", said, re.MULTILINE)) == 1, said
        assert "Traceback" not in said
        assert everything_in(tmp_path) == before
        return said

    return run


# --- text -----------------------------------------------------------------------------------------------------------

GOOD_LINE = '{"text": "x^2"}'


@pytest.mark.parametrize(
    ("lines", "where", "what"),
    [
        (None, "corpus.jsonl", "there is no such file"),
        ([], "corpus.jsonl", "the file is empty"),
        ([GOOD_LINE, '{"text": "x'], "corpus.jsonl:2", "the line is not JSON"),
        ([GOOD_LINE, GOOD_LINE, '{"body": "x"}'], "corpus.jsonl:3", "the field is missing"),
        ([GOOD_LINE, '["x"]'], "corpus.jsonl:2", "the line is not a JSON object"),
        ([GOOD_LINE, '{"text": 5}'], "corpus.jsonl:2", "the field is not a string"),
        (['{"text": ""}'], "corpus.jsonl", "the input contains no tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_text_that_is_no_text(
    lines: list[str] | None, where: str, what: str, inputs: Path, tmp_path: Path, refused: Refused
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    if lines is not None:
        corpus.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    said = refused("data", "tokenize", corpus, "--tokenizer", inputs / "tokenizer", "--out", tmp_path / "out")
    assert what in said
    assert f"{tmp_path}/{where}" in said


@contextmanager
def files_up_to(size_bytes: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_while_tokenizing(inputs: Path, tmp_path: Path, refused: Refused) -> None:
    with files_up_to(1000):
        said = refused(
            "data", "tokenize", inputs / "code.jsonl", "--tokenizer", inputs / "tokenizer", "--out", tmp_path / "out"
        )
    assert "the output cannot be written" in said


def test_an_output_below_a_file(inputs: Path, run_file: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "file").write_text("in the way")
    out = tmp_path / "file" / "out"
    tokenize = ("data", "tokenize", inputs / "code.jsonl", "--tokenizer", inputs / "tokenizer", "--out", out)
    assert "the output cannot be written" in refused(*tokenize)
    said = refused("train", run_file, "--set", f"output={out}")
    assert "the run's directory cannot be written" in said


# --- the tokenizer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["version https://git-lfs.github.com/spec/v1\n", "{}", ""])
def test_a_tokenizer_that_does_not_load(
    content: str, inputs: Path, run_file: Path, tmp_path: Path, refused: Refused
) -> None:
    file = inputs / "tokenizer" / "tokenizer.json"
    file.write_text(content)
    tokenize = ("data", "tokenize", inputs / "code.jsonl", "--tokenizer", file, "--out", tmp_path / "out")
    for command in (tokenize, ("train", run_file)):
        said = refused(*command)
        assert "the tokenizer cannot be loaded" in said
        assert str(file) in said


def test_a_tokenizer_that_is_not_there(run_file: Path, refused: Refused) -> None:
    assert "no tokenizer found" in refused("train", run_file, "--set", "data.tokenizer=nowhere")


def test_a_tokenizer_with_more_words_than_the_model(run_file: Path, refused: Refused) -> None:
    said = refused("train", run_file, "--set", "model.vocabulary_size=200")
    assert "the tokenizer has more tokens than the model's vocabulary" in said


def test_data_made_with_another_tokenizer(inputs: Path, run_file: Path, refused: Refused) -> None:
    file = inputs / "tokenizer" / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    tokenizer["pre_tokenizer"]["add_prefix_space"] = True
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    sidecar = inputs / "data" / "code.json"
    sidecar.unlink()  # one corpus that does not say what it was made with, and one that does
    said = refused("train", run_file)
    assert "the data was made with another tokenizer" in said
    assert str(inputs / "data" / "mathematics.json") in said


# --- tokens ---------------------------------------------------------------------------------------------------------


def cut_off(idx: Path) -> None:
    idx.write_bytes(idx.read_bytes()[:-5])


def cut_off_the_bin(idx: Path) -> None:
    file = idx.with_suffix(".bin")
    file.write_bytes(file.read_bytes()[:-2])


def point_beyond_the_bin(idx: Path) -> None:
    content = bytearray(idx.read_bytes())
    sequences = HEADER.unpack(content[: HEADER.size])[3]
    last_offset = HEADER.size + 4 * sequences + 8 * (sequences - 1)
    (offset,) = struct.unpack_from("<q", content, last_offset)
    struct.pack_into("<q", content, last_offset, offset + 2)
    idx.write_bytes(content)


@pytest.mark.parametrize("damage", [cut_off, cut_off_the_bin, point_beyond_the_bin, Path.unlink])
def test_an_index_that_does_not_fit_its_tokens(
    damage: Callable[[Path], None], inputs: Path, run_file: Path, refused: Refused
) -> None:
    damage(inputs / "data" / "code.idx")
    assert str(inputs / "data" / "code") in refused("train", run_file)


def test_a_token_beyond_the_vocabulary_is_found_by_the_rank_that_reads_it_and_said_once(
    inputs: Path, run_file: Path, tmp_path: Path
) -> None:
    with IndexedWriter(inputs / "data" / "code", np.dtype(np.uint16)) as writer:
        for document in range(60):
            writer.add_document([5] * 40 + [400 if document == 30 else 6] * 40)
    endings = run_ranks(2, dsmath, ["train", str(run_file), "--set", "data.held_out_share=0.0"])
    said = "".join(ending.err for ending in endings)
    assert len(re.findall(r"^error\[", said, re.MULTILINE)) == 1, said
    assert "Traceback" not in said
    assert "a token id is beyond the model's vocabulary" in said
    assert f"{inputs / 'data' / 'code'}.bin, document 30" in said
    assert 78 in [ending.code for ending in endings]  # which `--nproc` then makes the code of all
    status = status_of(tmp_path / "run")
    assert (status["state"], status["exit_code"]) == ("refused", 78)
    assert [row["step"] for row in rows_of(tmp_path / "run")] == list(range(1, status["step"] + 1))


def test_two_mistakes_in_the_data_are_said_together(
    inputs: Path, run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut_off(inputs / "data" / "code.idx")
    (inputs / "data" / "mathematics.idx").unlink()
    assert main(["train", str(run_file)]) == 78
    assert len(re.findall(r"^error\[", capsys.readouterr().err, re.MULTILINE)) == 2


# --- the layout -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "processes", "what"),
    [
        ("parallel.tensor=4", 4, "the tensor-parallel size does not divide the model"),
        ("parallel.pipeline=3", 3, "the layers do not divide into equal stages"),
        ("parallel.tensor=2", 3, "the number of processes is not a multiple of the ranks of one copy of the model"),
        ("parallel.microbatch_sequences=3", 1, "the microbatches do not divide the global batch"),
        ("schedule.sequences_per_step=6", 2, "the data-parallel processes do not divide the global batch"),
    ],
)
def test_a_layout_that_does_not_divide(
    setting: str, processes: int, what: str, run_file: Path, refused: Refused
) -> None:
    said = refused("train", run_file, "--set", setting, "--nproc", processes)
    assert f"error[layout]: {what}" in said
