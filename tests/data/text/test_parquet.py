from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.data.text import parquet as parquet_module
from megatron_dsmath.data.text.documents import BadLine
from megatron_dsmath.data.text.parquet import row_batches
from megatron_dsmath.data.tokenizing.tokenize import tokenize
from megatron_dsmath.errors import DataError, DependencyError
from megatron_dsmath.files import lines
from tests.support.small_tokenizer import TEXT, write_small_tokenizer

pyarrow = pytest.importorskip("pyarrow")
from pyarrow import parquet  # noqa: E402

TEXTS = [TEXT[: 7 * row % len(TEXT)] * (row % 5) for row in range(3000)]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_tokenizer(tmp_path_factory.mktemp("small"))


def write(path: Path, columns: dict[str, Any], row_group_size: int = 1000, **options: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size, **options)
    return path


def read(path: Path, *fields: str) -> list[Any]:
    return [document for batch in row_batches(path, fields, 0) for document in batch.documents(fields)]


def outputs_of(prefix: Path) -> dict[str, bytes]:
    return {path.suffix: path.read_bytes() for path in prefix.parent.glob(f"{prefix.name}.*")}


@pytest.mark.parametrize("kind", ["string", "large_string", "dictionary"])
def test_a_document_has_the_number_and_texts_of_its_row(tmp_path: Path, kind: str) -> None:
    texts = ["one", "", "zwei\n\u2028drei", "数学 \U0001f999", "\0"]
    column = pyarrow.array(texts, pyarrow.string())
    column = column.dictionary_encode() if kind == "dictionary" else column.cast(kind)
    path = write(tmp_path / "a.parquet", {"other": list(range(5)), "b": texts[::-1], "text": column}, row_group_size=2)
    rows = [(document.path, document.line, document.texts) for document in read(path, "text", "b")]
    assert rows == [(path, number, pair) for number, pair in enumerate(zip(texts, texts[::-1], strict=True), 1)]


@pytest.mark.parametrize("workers", [1, 2])
def test_parquet_and_jsonl_give_the_same_bin_and_idx(tokenizer: Path, tmp_path: Path, workers: int) -> None:
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    table = write(tmp_path / "a.parquet", {"text": TEXTS})
    tokenize([tmp_path / "a.jsonl", tmp_path / "a.jsonl"], tokenizer, tmp_path / "lines")
    report = tokenize([table, tmp_path / "a.jsonl"], tokenizer, tmp_path / "rows", workers=workers)
    theirs, ours = outputs_of(tmp_path / "lines"), outputs_of(tmp_path / "rows")
    assert (ours[".bin"], ours[".idx"]) == (theirs[".bin"], theirs[".idx"])
    assert report.documents == 2 * len(TEXTS)


def test_a_batch_of_rows_is_about_as_large_as_a_block_of_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "BLOCK_BYTES", 10_000)
    path = write(tmp_path / "a.parquet", {"text": [f"{row:0500d}" for row in range(1000)]}, 500, use_dictionary=False)
    batches = list(row_batches(path, ["text"], 7))
    assert {len(batch.rows) for batch in batches} == {19, 500 % 19}  # 504 bytes a row as the format counts them
    assert [batch.first_number for batch in batches[:2]] == [1, 20]
    assert batches[-1].read_bytes == 7 + path.stat().st_size


def test_a_row_without_text_is_a_bad_row_with_its_number(tokenizer: Path, tmp_path: Path) -> None:
    broken = pyarrow.array([b"good", b"caf\xe9", None, b"x" * 30]).cast(pyarrow.binary())
    column = pyarrow.Array.from_buffers(pyarrow.string(), 4, broken.buffers())  # what a careless writer produces
    path = write(tmp_path / "a.parquet", {"text": column})
    with pytest.raises(DataError, match="0xe9") as caught:
        tokenize([path], tokenizer, tmp_path / "out")
    assert caught.value.where == f"{path}:row 2"
    report = tokenize([path], tokenizer, tmp_path / "out", bad_lines="skip")
    assert (report.documents, report.bad_lines) == (2, 2)
    rows = [json.loads(row) for row in (tmp_path / "out.bad_lines.jsonl").open()]
    assert [(row["line"], row["content"].encode("utf-8", "surrogateescape")) for row in rows] == [
        (2, b"caf\xe9"),
        (3, b""),
    ]


def test_a_text_over_the_limit_is_a_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet_module, "LINE_LIMIT_BYTES", 2000)
    path = write(tmp_path / "a.parquet", {"text": ["x" * 2000, "y" * 2001]})
    good, bad = read(path, "text")
    assert good.texts == ("x" * 2000,)
    assert isinstance(bad, BadLine)
    assert (bad.line.content, bad.line.size_bytes) == (b"y" * lines.EXCERPT_BYTES, 2001)


def damaged(path: Path) -> Path:
    content = bytearray(write(path, {"text": [f"{row:0500d}" for row in range(100)]}).read_bytes())
    content[4:2000] = b"\xff" * 1996
    path.write_bytes(content)
    return path


def cut_off(path: Path) -> Path:
    path.write_bytes(write(path, {"text": TEXTS}).read_bytes()[:-100])
    return path


def no_parquet(path: Path) -> Path:
    path.write_text('{"text": "x"}\n')
    return path


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: write(path, {"content": ["x"]}), "the column is missing"),
        (lambda path: write(path, {"text": [1]}), "the column does not contain text"),
        (lambda path: write(path, {"text": pyarrow.array([], pyarrow.string())}), "the file is empty"),
        (damaged, "cannot be read"),
        (cut_off, "cannot be read"),
        (no_parquet, "cannot be read"),
    ],
)
def test_an_unreadable_file_is_one_clear_error(
    tokenizer: Path, tmp_path: Path, make: Callable[[Path], Path], message: str
) -> None:
    path = make(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=message) as caught:
        tokenize([path], tokenizer, tmp_path / "out", bad_lines="skip")
    assert str(caught.value.where).startswith(str(path))
    assert not list(tmp_path.glob("out*"))


def test_without_pyarrow_the_error_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.parquet", {"text": ["x"]})
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DependencyError, match=r"pip install 'megatron_dsmath\[parquet\]'"):
        next(row_batches(path, ["text"], 0))
