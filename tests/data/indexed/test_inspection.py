from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from megatron_dsmath.data.indexed.dataset import IndexedWriter
from megatron_dsmath.data.indexed.inspection import inspect, verify
from tests.support.datasets import DOCUMENTS, write_ours, write_theirs


def test_inspect_counts_documents_sequences_and_bytes(tmp_path: Path) -> None:
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
        writer.metadata = {"vocabulary_size": 7}
    assert [fault.what for fault in verify(tmp_path / "corpus").faults] == ["a token id is not in the vocabulary"]


def test_verify_finds_one_flipped_bit(tmp_path: Path) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    with Path(f"{prefix}.bin").open("r+b") as file:
        file.write(b"\x04")  # the first token was 5
    assert [fault.what for fault in verify(prefix, 100).faults] == ["the sidecar does not match the .bin"]


def test_verify_finds_a_truncated_bin(tmp_path: Path) -> None:
    prefix = write_ours(tmp_path / "corpus", DOCUMENTS)
    os.truncate(f"{prefix}.bin", 31)
    verification = verify(prefix)
    assert not verification.holds
    assert verification.faults[0].what == "the size of the .bin does not match the index"


def test_verify_without_a_sidecar_lists_only_the_checks_made(tmp_path: Path) -> None:
    verification = verify(write_theirs(tmp_path / "corpus", DOCUMENTS))
    assert (verification.holds, verification.checks) == (True, ("the index describes the .bin",))
