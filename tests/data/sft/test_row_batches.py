from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.data.sft.build_set import build
from megatron_dsmath.data.sft.example_encoder import Options
from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.data.sft.sources import sources_of_files
from megatron_dsmath.data.text.document_batches import conversation_row_batches
from megatron_dsmath.errors import DataError, DependencyError
from tests.data.sft.sets import rows, write_rows
from tests.support.small_tokenizer import write_small_tokenizer

TURNS = [
    {"messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"是{n}"}], "score": n / 2}
    for n in range(700)
]


def write_parquet(path: Path, content: list[dict[str, Any]]) -> Path:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(content), path)
    return path


@pytest.mark.parametrize("content", [TURNS, rows(700)], ids=["nested", "flat"])
def test_parquet_gives_the_examples_of_jsonl(tmp_path: Path, content: list[dict[str, Any]]) -> None:
    tokenizer = write_small_tokenizer(tmp_path / "tokenizer")
    paths = (write_rows(tmp_path / "a.jsonl", content), write_parquet(tmp_path / "a.parquet", content))
    sets = []
    for path in paths:
        build(sources_of_files([path]), tokenizer, tmp_path / path.suffix, Options())
        sets.append(Examples(tmp_path / path.suffix))
    jsonl, from_parquet = sets
    assert from_parquet.dataset.tokens.tolist() == jsonl.dataset.tokens.tolist()
    assert from_parquet.labels.tolist() == jsonl.labels.tolist()


def test_rows_are_numbered_on_and_bytes_counted_to_the_end(tmp_path: Path) -> None:
    paths = [write_rows(tmp_path / "a.jsonl", TURNS), write_parquet(tmp_path / "b.parquet", TURNS)]
    batches = list(conversation_row_batches(paths))
    numbers = [line.number for batch in batches for line in batch.block.lines() if batch.path == paths[1]]
    assert numbers == list(range(1, 701))
    assert batches[-1].read_bytes == sum(path.stat().st_size for path in paths)


def test_a_number_that_is_none_spoils_no_row(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"question": "1?", "answer": "1", "score": float("nan")}])
    report = build(sources_of_files([path]), write_small_tokenizer(tmp_path / "t"), tmp_path / "set", Options())
    assert report.examples == 1


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", TURNS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read") as caught:
        list(conversation_row_batches([path]))
    assert str(path) in str(caught.value.where)


def test_without_the_package_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", TURNS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DependencyError, match="pyarrow"):
        list(conversation_row_batches([path]))
