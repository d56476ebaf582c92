from __future__ import annotations

import datetime
import decimal
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from megatron_dsmath.data.sft import conversation
from megatron_dsmath.data.sft.build_set import build
from megatron_dsmath.data.sft.example_encoder import Options
from megatron_dsmath.data.sft.examples import Examples
from megatron_dsmath.data.sft.sources import sources_from_files
from megatron_dsmath.data.text.document_batches import TableRow, conversation_row_batches
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
        build(sources_from_files([path]), tokenizer, tmp_path / path.suffix, Options())
        sets.append(Examples(tmp_path / path.suffix))
    jsonl, from_parquet = sets
    assert from_parquet.dataset.tokens.tolist() == jsonl.dataset.tokens.tolist()
    assert from_parquet.labels.tolist() == jsonl.labels.tolist()


def test_rows_are_numbered_and_bytes_counted_to_the_end(tmp_path: Path) -> None:
    paths = [write_rows(tmp_path / "a.jsonl", TURNS), write_parquet(tmp_path / "b.parquet", TURNS)]
    batches = list(conversation_row_batches(paths))
    numbers = [line.number for batch in batches for line in batch.rows if batch.path == paths[1]]
    assert numbers == list(range(1, 701))
    assert batches[-1].read_bytes == sum(path.stat().st_size for path in paths)


def test_a_row_has_the_values_that_its_json_has(tmp_path: Path) -> None:
    """Expected: the row through `json.dumps(default=str)` and `json.loads`; NaN and infinity have no JSON."""
    plain = {
        "text": "数\x00\ud7ff",
        "whole": 2**53 + 1,
        "half": 0.1,
        "flag": True,
        "nothing": None,
        "words": ["a", None],
    }
    odd = {
        "day": datetime.date(2024, 2, 29),
        "time": datetime.datetime(2024, 2, 29, 12, 30, 0, 5),
        "wait": datetime.timedelta(seconds=1.5),
        "price": decimal.Decimal("1.50"),
        "bytes": b"\xff",
    }
    nested = {"of": [{"day": odd["day"], "turns": [{"score": 1.0}]}]}
    row = {**plain, **odd, "nested": nested}
    not_finite = {"nan": float("nan"), "most": float("inf"), "deep": {"scores": [1.0, float("-inf")]}}
    path = write_parquet(tmp_path / "a.parquet", [{**row, **not_finite}])
    ((read,),) = (batch.rows for batch in conversation_row_batches([path]))
    assert isinstance(read, TableRow) and read.number == 1
    expected = json.loads(json.dumps(row, default=str))
    assert read.fields == {**expected, "nan": None, "most": None, "deep": {"scores": [1.0, None]}}
    assert json.loads(read.line().content) == read.fields


def test_nan_in_a_field_that_is_not_used_does_not_refuse_a_row(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"question": "1?", "answer": "1", "score": float("nan")}])
    report = build(sources_from_files([path]), write_small_tokenizer(tmp_path / "t"), tmp_path / "set", Options())
    assert report.examples == 1


def test_a_bad_row_of_a_table_is_set_aside_as_json_with_its_number(tmp_path: Path) -> None:
    content = [{"question": "1?", "answer": answer} for answer in ("1", "", "3")]
    path, tokenizer = write_parquet(tmp_path / "a.parquet", content), write_small_tokenizer(tmp_path / "t")
    with pytest.raises(DataError, match="content is empty") as caught:
        build(sources_from_files([path]), tokenizer, tmp_path / "set", Options())
    assert caught.value.where == f"{path}:2"
    report = build(sources_from_files([path]), tokenizer, tmp_path / "set", Options(bad_lines="skip"))
    assert (report.examples, report.bad_lines) == (2, 1)
    (row,) = map(json.loads, (tmp_path / "set.bad_lines.jsonl").read_bytes().splitlines())
    assert (row["line"], row["content"]) == (2, json.dumps(content[1]))


def test_a_text_longer_than_a_line_may_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "LINE_LIMIT_BYTES", 5)
    path = write_parquet(tmp_path / "a.parquet", [{"question": "数数", "answer": "1"}])
    with pytest.raises(DataError, match="too long") as caught:
        build(sources_from_files([path]), write_small_tokenizer(tmp_path / "t"), tmp_path / "set", Options())
    assert caught.value.found == "6 bytes"


def test_a_damaged_file_is_refused_by_name(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", TURNS)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read") as caught:
        list(conversation_row_batches([path]))
    assert str(path) in str(caught.value.where)


def test_without_pyarrow_the_error_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_parquet(tmp_path / "a.parquet", TURNS)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(DependencyError, match="pyarrow"):
        list(conversation_row_batches([path]))
