from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from megatron.core.datasets import indexed_dataset as megatron

from megatron_dsmath.data.indexed.dataset import IndexedWriter
from megatron_dsmath.data.indexed.inspection import verify
from megatron_dsmath.data.indexed.merging import merge
from megatron_dsmath.errors import DsmathError, IndexedDatasetError, UsageError
from tests.data.sft.sets import small_set
from tests.support.datasets import DOCUMENTS, files_of, write_ours, write_theirs


def test_merged_files_are_byte_for_byte_megatrons(tmp_path: Path) -> None:
    prefixes = [write_ours(tmp_path / "a", DOCUMENTS), write_theirs(tmp_path / "b", [[], [1, 2]])]
    builder = megatron.IndexedDatasetBuilder(f"{tmp_path}/theirs.bin", dtype=np.int32)
    for prefix in prefixes:
        builder.add_index(str(prefix))
    builder.finalize(f"{tmp_path}/theirs.idx")
    merged = merge(prefixes, tmp_path / "ours")
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "theirs")
    assert (merged.documents, merged.tokens) == (6, 10)
    assert verify(tmp_path / "ours", 100).holds


def test_merge_keeps_the_common_metadata(tmp_path: Path) -> None:
    facts = {"vocabulary_size": 10, "tokenizer": {"fingerprint": "abc"}}
    for name in "ab":
        with IndexedWriter(tmp_path / name, np.dtype(np.uint16)) as writer:
            writer.add_document([1])
            writer.metadata = facts
    sidecar = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged").sidecar
    assert sidecar is not None
    assert {name: sidecar[name] for name in facts} == facts


def test_merge_refuses_conversations_and_names_the_command_for_them(tmp_path: Path) -> None:
    write_ours(tmp_path / "a", DOCUMENTS)
    small_set(tmp_path, 6)
    with pytest.raises(UsageError, match="its loss masks and labels would be lost") as caught:
        merge([tmp_path / "a", tmp_path / "set"], tmp_path / "out")
    assert caught.value.where == tmp_path / "set.json"
    assert "dsmath sft build FILE FILE" in str(caught.value.fix)
    assert not list(tmp_path.glob("out*"))


def test_merge_refuses_incompatible_inputs(tmp_path: Path) -> None:
    write_ours(tmp_path / "a", DOCUMENTS)
    write_ours(tmp_path / "short", DOCUMENTS, np.uint16)
    for name in "bc":
        with IndexedWriter(tmp_path / name, np.dtype(np.int32)) as writer:
            writer.add_document([1])
            writer.metadata = {"tokenizer": {"fingerprint": name}}
    refusals: list[tuple[list[str], str, type[DsmathError], str]] = [
        (["a", "short"], "out", IndexedDatasetError, "different dtypes"),
        (["b", "c"], "out", IndexedDatasetError, "different tokenizers"),
        (["a", "b"], "a", UsageError, "into itself"),
        ([], "out", UsageError, "no dataset"),
    ]
    for names, out, kind, message in refusals:
        with pytest.raises(kind, match=message):
            merge([tmp_path / name for name in names], tmp_path / out)
    assert not list(tmp_path.glob("out*"))
