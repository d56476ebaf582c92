from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.datasets import indexed_dataset as megatron

from megatron_dsmath.data.indexed.dataset import IndexedDataset, IndexedWriter, dtype_for
from megatron_dsmath.errors import IndexedDatasetError
from tests.support.datasets import DOCUMENTS, files_of, write_ours, write_theirs

DTYPES = [np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16]

documents_of_small_ids = st.lists(st.lists(st.integers(0, 127), max_size=5), min_size=1, max_size=8)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(documents=documents_of_small_ids)
def test_files_are_byte_for_byte_megatrons(tmp_path: Path, dtype: type[np.integer], documents: list[list[int]]) -> None:
    ours, theirs = write_ours(tmp_path / "ours", documents, dtype), write_theirs(tmp_path / "theirs", documents, dtype)
    assert files_of(ours) == files_of(theirs)


def test_megatron_reads_our_files(tmp_path: Path) -> None:
    theirs = megatron.IndexedDataset(str(write_ours(tmp_path / "corpus", DOCUMENTS)))
    assert [theirs[i].tolist() for i in range(len(theirs))] == [[5, 6, 7], [0], [99, 2, 3, 4]]
    assert theirs.document_indices.tolist() == [0, 1, 1, 2, 3]


def test_we_read_megatrons_files_with_several_sequences_per_document(tmp_path: Path) -> None:
    builder = megatron.IndexedDatasetBuilder(f"{tmp_path}/corpus.bin", dtype=np.uint16)
    builder.add_document([1, 2, 3, 4, 5], [2, 3])
    builder.add_document([6], [1])
    builder.finalize(f"{tmp_path}/corpus.idx")
    ours = IndexedDataset(tmp_path / "corpus")
    assert (len(ours), ours.document_count, ours.token_count, ours.dtype) == (3, 2, 6, np.uint16)
    assert [ours[i].tolist() for i in range(3)] == [[1, 2], [3, 4, 5], [6]]
    assert [ours.document(i).tolist() for i in range(2)] == [[1, 2, 3, 4, 5], [6]]


def test_index_arrays_are_as_documented(tmp_path: Path) -> None:
    dataset = IndexedDataset(write_ours(tmp_path / "corpus", DOCUMENTS))
    assert (dataset.lengths.dtype, dataset.lengths.tolist()) == (np.int32, [3, 1, 4])
    assert (dataset.offsets.dtype, dataset.offsets.tolist()) == (np.int64, [0, 12, 16])
    assert (dataset.document_indices.dtype, dataset.document_indices.tolist()) == (np.int64, [0, 1, 1, 2, 3])
    assert dataset.tokens.tolist() == [5, 6, 7, 0, 99, 2, 3, 4]
    assert [dataset.document(i).tolist() for i in range(4)] == DOCUMENTS
    with pytest.raises(ValueError, match="read-only"):
        dataset.tokens[0] = 1


def test_dtype_is_megatrons_for_every_vocabulary_size() -> None:
    for size in (1, 65_499, 65_500, 65_536, 102_400):
        assert dtype_for(size) == megatron.DType.optimal_dtype(size)


def test_pickling_stores_the_prefix_and_not_the_corpus(tmp_path: Path) -> None:
    dataset = IndexedDataset(write_ours(tmp_path / "corpus", [list(range(10_000))]))
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).tokens.tolist() == list(range(10_000))


@pytest.mark.parametrize("ending", ["bin", "idx"])
def test_the_error_names_the_missing_file(tmp_path: Path, ending: str) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    Path(f"{prefix}.{ending}").unlink()
    with pytest.raises(IndexedDatasetError, match=f"corpus.{ending} is missing"):
        IndexedDataset(prefix)


def test_a_prefix_with_its_ending_is_corrected(tmp_path: Path) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    with pytest.raises(IndexedDatasetError, match=f"without its ending: {prefix}$"):
        IndexedDataset(f"{prefix}.bin")


@pytest.mark.parametrize(("dtype", "identifier"), [(np.uint16, 65_536), (np.uint16, -1), (np.int32, 2**31)])
def test_an_id_that_does_not_fit_is_refused(tmp_path: Path, dtype: type[np.integer], identifier: int) -> None:
    with (
        pytest.raises(IndexedDatasetError, match="does not fit"),
        IndexedWriter(tmp_path / "corpus", np.dtype(dtype)) as writer,
    ):
        writer.add_document([1, identifier])
    assert not list(tmp_path.iterdir())
