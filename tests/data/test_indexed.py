from __future__ import annotations

import json
import os
import pickle
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from megatron.core.datasets import indexed_dataset as megatron

from megatron_dsmath.data.indexed import IndexedDataset, IndexedWriter, dtype_for
from megatron_dsmath.data.inspection import inspect, verify
from megatron_dsmath.data.merging import merge
from megatron_dsmath.errors import DsmathError, IndexedDatasetError, OutputError, UsageError

HEADER = struct.Struct("<9sQBQQ")
DTYPES = [np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint16]
DOCUMENTS = [[5, 6, 7], [], [0], [99, 2, 3, 4]]

documents_of_small_ids = st.lists(st.lists(st.integers(0, 127), max_size=5), min_size=1, max_size=8)


def write_ours(prefix: Path, documents: list[list[int]], dtype: type[np.integer] = np.int32) -> Path:
    with IndexedWriter(prefix, np.dtype(dtype)) as writer:
        for document in documents:
            writer.add_document(document)
    return prefix


def write_theirs(prefix: Path, documents: list[list[int]], dtype: type[np.integer] = np.int32) -> Path:
    builder = megatron.IndexedDatasetBuilder(f"{prefix}.bin", dtype=dtype)
    for document in documents:
        builder.add_document(document, [len(document)] if document else [])
    builder.finalize(f"{prefix}.idx")
    return prefix


def files_of(prefix: Path) -> tuple[bytes, bytes]:
    return Path(f"{prefix}.bin").read_bytes(), Path(f"{prefix}.idx").read_bytes()


def raw_index(
    lengths: list[int],
    offsets: list[int],
    documents: list[int],
    *,
    magic: bytes = b"MMIDIDX\x00\x00",
    version: int = 1,
    code: int = 4,
    counts: tuple[int, int] | None = None,
) -> bytes:
    """An .idx by hand, from the layout in docs/data_format.md."""
    sequences, boundaries = counts or (len(lengths), len(documents))
    return b"".join(
        (
            HEADER.pack(magic, version, code, sequences, boundaries),
            np.array(lengths, "<i4").tobytes(),
            np.array(offsets, "<i8").tobytes(),
            np.array(documents, "<i8").tobytes(),
        )
    )


def put(prefix: Path, index: bytes, bin_bytes: int) -> Path:
    Path(f"{prefix}.idx").write_bytes(index)
    Path(f"{prefix}.bin").write_bytes(bytes(bin_bytes))
    return prefix


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(documents=documents_of_small_ids)
def test_files_are_byte_for_byte_megatrons(tmp_path: Path, dtype: type[np.integer], documents: list[list[int]]) -> None:
    ours, theirs = write_ours(tmp_path / "ours", documents, dtype), write_theirs(tmp_path / "theirs", documents, dtype)
    assert files_of(ours) == files_of(theirs)


def test_megatron_reads_what_we_write(tmp_path: Path) -> None:
    theirs = megatron.IndexedDataset(str(write_ours(tmp_path / "corpus", DOCUMENTS)))
    assert [theirs[i].tolist() for i in range(len(theirs))] == [[5, 6, 7], [0], [99, 2, 3, 4]]
    assert theirs.document_indices.tolist() == [0, 1, 1, 2, 3]


def test_we_read_what_megatron_writes_with_several_sequences_a_document(tmp_path: Path) -> None:
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


def test_pickling_carries_the_name_and_not_the_corpus(tmp_path: Path) -> None:
    dataset = IndexedDataset(write_ours(tmp_path / "corpus", [list(range(10_000))]))
    pickled = pickle.dumps(dataset)
    assert len(pickled) < 1000
    assert pickle.loads(pickled).tokens.tolist() == list(range(10_000))


GOOD = {"lengths": [2, 3], "offsets": [0, 8], "documents": [0, 1, 2]}
FAULTS = {
    "bad magic": ({"magic": b"MMIDIDX\x00\x01"}, "not an index of tokens"),
    "another version": ({"version": 2}, "another version"),
    "float tokens": ({"code": 7}, "no integer dtype"),
    "unknown dtype": ({"code": 99}, "no integer dtype"),
    "2^62 sequences": ({"counts": (2**62, 3)}, "truncated"),
    "2^64-1 documents": ({"counts": (2, 2**64 - 1)}, "truncated"),
    "fewer sequences than there is room for": ({"counts": (1, 3)}, "bytes too many"),
    "negative length": ({"lengths": [-2, 7]}, "negative length"),
    "longer than the .bin": ({"lengths": [2, 4]}, "not as long as the index says"),
    "shorter than the .bin": ({"lengths": [2, 2]}, "not as long as the index says"),
    "sum wraps in 32 bits": ({"lengths": [2**31 - 1, 2**31 - 1]}, "not as long as the index says"),
    "negative offset": ({"offsets": [0, -8]}, "does not begin where"),
    "offset past the end": ({"offsets": [0, 2**62]}, "does not begin where"),
    "overlap": ({"offsets": [0, 4]}, "does not begin where"),
    "swapped": ({"offsets": [8, 0]}, "does not begin where"),
    "offset within a token": ({"offsets": [0, 9]}, "does not begin where"),
    "first boundary not 0": ({"documents": [1, 1, 2]}, "first document boundary"),
    "last boundary too low": ({"documents": [0, 1, 1]}, "last document boundary"),
    "last boundary too high": ({"documents": [0, 1, 3]}, "last document boundary"),
    "falling boundaries": ({"documents": [0, 2, 1, 2]}, "boundaries fall"),
    "no boundaries": ({"documents": []}, "no document boundaries"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_hostile_index_is_refused_with_its_fault(tmp_path: Path, name: str) -> None:
    change, message = FAULTS[name]
    prefix = put(tmp_path / "corpus", raw_index(**{**GOOD, **change}), 20)
    with pytest.raises(IndexedDatasetError, match=message) as caught:
        IndexedDataset(prefix)
    assert "corpus." in str(caught.value.where)
    assert None not in (caught.value.found, caught.value.expected, caught.value.fix)


def test_the_index_those_faults_start_from_is_good(tmp_path: Path) -> None:
    assert len(IndexedDataset(put(tmp_path / "corpus", raw_index(**GOOD), 20))) == 2


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_an_index_with_changed_bytes_is_refused_or_stays_within_the_bin(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(raw_index(**GOOD))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    prefix = put(tmp_path / "corpus", bytes(content), 20)
    try:
        dataset = IndexedDataset(prefix)
    except IndexedDatasetError:
        return
    assert sum(len(dataset[i]) for i in range(len(dataset))) == dataset.token_count
    assert sum(len(dataset.document(i)) for i in range(dataset.document_count)) == dataset.token_count


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(max_size=200), bin_bytes=st.integers(0, 50))
def test_random_bytes_after_the_magic_never_open(tmp_path: Path, content: bytes, bin_bytes: int) -> None:
    prefix = put(tmp_path / "corpus", b"MMIDIDX\x00\x00" + content, bin_bytes)
    with pytest.raises(IndexedDatasetError):
        IndexedDataset(prefix)


def test_a_huge_count_allocates_nothing(tmp_path: Path) -> None:
    prefix = put(tmp_path / "corpus", raw_index(**GOOD, counts=(2**61, 2**61)), 20)
    code = f"""
import resource
from megatron_dsmath.data.indexed import IndexedDataset
from megatron_dsmath.errors import IndexedDatasetError
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (64 << 20),) * 2)
try:
    IndexedDataset({str(prefix)!r})
except IndexedDatasetError as error:
    print(error.what)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout == "the index is truncated\n"


@pytest.mark.parametrize("ending", ["bin", "idx"])
def test_a_missing_file_is_named(tmp_path: Path, ending: str) -> None:
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


def test_nothing_stays_when_writing_fails(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), IndexedWriter(tmp_path / "corpus", np.dtype(np.int32)) as writer:
        writer.add_document([1])
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_an_old_dataset_stays_whole_until_the_new_one_is(tmp_path: Path) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    before = files_of(prefix)
    with IndexedWriter(prefix, np.dtype(np.int32)) as writer:
        writer.add_document([1])
        assert files_of(prefix) == before
    assert IndexedDataset(prefix).tokens.tolist() == [1]


def test_two_writers_of_one_dataset_do_not_meet(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "corpus", np.dtype(np.int32)) as writer:
        with pytest.raises(OutputError, match="another process is writing"):
            IndexedWriter(tmp_path / "corpus", np.dtype(np.int32))
        writer.add_document([1])
    assert IndexedDataset(tmp_path / "corpus").token_count == 1


def test_what_a_killed_writer_left_is_written_over(tmp_path: Path) -> None:
    prefix = tmp_path / "corpus"
    code = f"""
import os, signal, numpy
from megatron_dsmath.data.indexed import IndexedWriter
with IndexedWriter({str(prefix)!r}, numpy.dtype("int32")) as writer:
    writer.add_document(range(1_000_000))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    assert {file.suffix for file in tmp_path.iterdir()} == {".partial"}
    write_ours(prefix, DOCUMENTS)
    assert files_of(prefix) == files_of(write_theirs(tmp_path / "theirs", DOCUMENTS))
    assert not list(tmp_path.glob("*.partial"))


def test_a_full_disk_is_one_clear_error(tmp_path: Path) -> None:
    """A limit on the size of a file stands in for a full disk: the system refuses the write in the same call."""
    code = f"""
import resource, signal, numpy
from megatron_dsmath.data.indexed import IndexedWriter
from megatron_dsmath.errors import DsmathError, show
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    with IndexedWriter({str(tmp_path / "corpus")!r}, numpy.dtype("int32")) as writer:
        writer.add_document(numpy.arange(10_000_000))
except DsmathError as error:
    raise SystemExit(show(error))
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout) == (78, "")
    assert "error[output]" in run.stderr
    assert str(tmp_path) in run.stderr
    assert "bytes free" in run.stderr
    assert "40,000,000 bytes for corpus.bin" in run.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written") as caught:
        IndexedWriter(tmp_path / "file" / "corpus", np.dtype(np.int32))
    assert caught.value.where == tmp_path / "file"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_folder_of_another_user_is_one_clear_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    child = os.fork()
    if child == 0:
        status = 0
        try:
            os.setuid(65_534)  # nobody
            IndexedWriter(tmp_path / "corpus", np.dtype(np.int32))
        except OutputError:
            status = 78
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 78
    assert not list(tmp_path.iterdir())


def test_the_sidecar_holds_counts_hashes_and_facts(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "corpus", np.dtype(np.uint16)) as writer:
        writer.add_document([1, 2])
        writer.facts = {"vocabulary_size": 3}
    sidecar = json.loads((tmp_path / "corpus.json").read_text())
    sha256 = sidecar.pop("sha256")
    assert sidecar == {"documents": 1, "sequences": 1, "tokens": 2, "dtype": "uint16", "vocabulary_size": 3}
    for ending in ("bin", "idx"):
        run = subprocess.run(["sha256sum", tmp_path / f"corpus.{ending}"], capture_output=True, text=True, check=True)
        assert sha256[ending] == run.stdout.split()[0]


def test_inspect_counts_what_is_there(tmp_path: Path) -> None:
    inspection = inspect(write_ours(tmp_path / "corpus", DOCUMENTS))
    assert (inspection.documents, inspection.empty_documents, inspection.sequences, inspection.tokens) == (4, 1, 3, 8)
    assert (inspection.shortest_sequence, inspection.longest_sequence) == (1, 4)
    assert (inspection.bin_bytes, inspection.idx_bytes) == (8 * 4, 34 + 3 * 12 + 5 * 8)


def test_verify_finds_the_document_of_an_id_beyond_the_vocabulary(tmp_path: Path) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    assert verify(prefix, vocabulary_size=100).holds
    (fault,) = verify(prefix, vocabulary_size=99).faults
    assert fault.found == 99
    assert str(fault.where).endswith("token 4, document 3")


def test_verify_takes_the_vocabulary_from_the_sidecar(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "corpus", np.dtype(np.int32)) as writer:
        writer.add_document([7])
        writer.facts = {"vocabulary_size": 7}
    assert [fault.what for fault in verify(tmp_path / "corpus").faults] == ["a token id is not in the vocabulary"]


def test_verify_finds_one_flipped_bit(tmp_path: Path) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    with Path(f"{prefix}.bin").open("r+b") as file:
        file.write(b"\x04")  # the first token was 5
    assert [fault.what for fault in verify(prefix, 100).faults] == ["the sidecar tells of another .bin"]


def test_verify_says_no_to_a_truncated_bin(tmp_path: Path) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    os.truncate(f"{prefix}.bin", 31)
    verification = verify(prefix)
    assert not verification.holds
    assert verification.faults[0].what == "the .bin is not as long as the index says"


def test_verify_without_a_sidecar_claims_only_what_it_checked(tmp_path: Path) -> None:
    verification = verify(write_theirs(tmp_path / "corpus", DOCUMENTS))
    assert (verification.holds, verification.checks) == (True, ("the index describes the .bin",))


def test_merge_is_byte_for_byte_megatrons(tmp_path: Path) -> None:
    prefixes = [write_ours(tmp_path / "a", DOCUMENTS), write_theirs(tmp_path / "b", [[], [1, 2]])]
    builder = megatron.IndexedDatasetBuilder(f"{tmp_path}/theirs.bin", dtype=np.int32)
    for prefix in prefixes:
        builder.add_index(str(prefix))
    builder.finalize(f"{tmp_path}/theirs.idx")
    merged = merge(prefixes, tmp_path / "ours")
    assert files_of(tmp_path / "ours") == files_of(tmp_path / "theirs")
    assert (merged.documents, merged.tokens) == (6, 10)
    assert verify(tmp_path / "ours", 100).holds


def test_merge_keeps_what_the_sidecars_agree_on(tmp_path: Path) -> None:
    facts = {"vocabulary_size": 10, "tokenizer": {"fingerprint": "abc"}}
    for name in "ab":
        with IndexedWriter(tmp_path / name, np.dtype(np.uint16)) as writer:
            writer.add_document([1])
            writer.facts = facts
    sidecar = merge([tmp_path / "a", tmp_path / "b"], tmp_path / "merged").sidecar
    assert sidecar is not None
    assert {name: sidecar[name] for name in facts} == facts


def test_merge_refuses_what_does_not_go_together(tmp_path: Path) -> None:
    write_ours(tmp_path / "a", DOCUMENTS)
    write_ours(tmp_path / "short", DOCUMENTS, np.uint16)
    for name in "bc":
        with IndexedWriter(tmp_path / name, np.dtype(np.int32)) as writer:
            writer.add_document([1])
            writer.facts = {"tokenizer": {"fingerprint": name}}
    refusals: list[tuple[list[str], str, type[DsmathError], str]] = [
        (["a", "short"], "out", IndexedDatasetError, "two dtypes"),
        (["b", "c"], "out", IndexedDatasetError, "two tokenizers"),
        (["a", "b"], "a", UsageError, "into itself"),
        ([], "out", UsageError, "no dataset"),
    ]
    for names, out, kind, message in refusals:
        with pytest.raises(kind, match=message):
            merge([tmp_path / name for name in names], tmp_path / out)
    assert not list(tmp_path.glob("out*"))
