from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from megatron_dsmath.data.indexed.dataset import IndexedDataset, IndexedWriter, dtype_for
from megatron_dsmath.data.mixture.samples import CorpusSamples, Segment, TokenStream
from megatron_dsmath.errors import IndexedDatasetError

Write = Callable[[Sequence[Sequence[int]]], IndexedDataset]
VOCABULARY = 1000


@pytest.fixture(scope="module")
def write(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Documents to a shard."""

    def write(documents: Sequence[Sequence[int]]) -> IndexedDataset:
        prefix = tmp_path_factory.mktemp("shard") / "shard"
        with IndexedWriter(prefix, dtype_for(VOCABULARY)) as writer:
            for document in documents:
                writer.add_document(document)
        return IndexedDataset(prefix)

    return write


def samples(name: str, shards: Sequence[IndexedDataset], sequence_length: int, seed: int) -> CorpusSamples:
    return CorpusSamples(stream(*shards), sequence_length, seed, name)


def stream(*shards: IndexedDataset) -> TokenStream:
    return TokenStream([Segment(shard, 0, shard.token_count) for shard in shards], VOCABULARY)


def counting(*lengths: int, first: int = 0) -> list[list[int]]:
    """Documents of these lengths whose tokens are their positions in the stream."""
    ends = np.cumsum((first, *lengths)).tolist()
    return [list(range(start, stop)) for start, stop in pairwise(ends)]


def test_a_sample_is_consecutive_in_the_circular_stream(write: Write) -> None:
    training = samples("math", [write(counting(3, 3, 4))], 3, 1)
    assert training.samples_per_epoch == 3  # 10 tokens, stride 3
    for number in range(9):
        tokens, document_starts = training.read(number)
        assert tokens.tolist() == [(tokens[0] + place) % 10 for place in range(4)]
        assert document_starts.tolist() == [place for place in range(4) if place == 0 or tokens[place] in (0, 3, 6)]


def test_windows_cross_shards(write: Write) -> None:
    shards = [write(counting(5)), write([]), write(counting(2, 4, first=5)), write(counting(1, first=11))]
    training = samples("math", shards, 11, 1)
    assert training.samples_per_epoch == 1
    for number in range(20):
        tokens, document_starts = training.read(number)
        assert tokens.tolist() == [(tokens[0] + place) % 12 for place in range(12)]
        assert document_starts.tolist() == [
            place for place in range(12) if place == 0 or tokens[place] in (0, 5, 7, 11)
        ]


@settings(deadline=None, max_examples=50)  # a deadline would time the disk
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=12).filter(lambda lengths: sum(lengths) > 12),
    sequence_length=st.integers(1, 11),
    seed=st.integers(0, 2**63),
)
def test_an_epoch_uses_each_token_once_up_to_its_cut(
    write: Write, lengths: list[int], sequence_length: int, seed: int
) -> None:
    training = samples("math", [write(counting(*lengths))], sequence_length, seed)
    epoch = training.samples_per_epoch
    for first in (0, epoch, 5 * epoch):
        tokens = np.stack([training.read(number).tokens for number in range(first, first + epoch)])
        for part in (tokens[:, :-1], tokens[:, 1:]):  # inputs, targets
            assert set(Counter(part.ravel().tolist()).values()) == {1}
            assert sum(lengths) - part.size == sum(lengths) % sequence_length


def test_epochs_differ_in_order_and_in_the_tokens_they_omit(write: Write) -> None:
    training = samples("math", [write(counting(50, 53))], 4, 1)
    epochs = [[training.read(25 * epoch + place) for place in range(25)] for epoch in range(4)]
    orders = {tuple(training.locate(25 * epoch + np.arange(25)).window.tolist()) for epoch in range(4)}
    cuts = {frozenset(range(103)) - {int(token) for sample in epoch for token in sample.tokens} for epoch in epochs}
    assert len(orders) == len(cuts) == 4


def test_a_third_of_the_third_epoch_is_a_third_of_its_windows(write: Write) -> None:
    training = samples("math", [write(counting(120))], 4, 1)
    windows = training.locate(np.arange(70))  # 2.33 epochs of 30
    assert windows.epoch.tolist() == [0] * 30 + [1] * 30 + [2] * 10
    assert sorted(Counter(windows.window.tolist()).values()) == [2] * 20 + [3] * 10


def test_a_location_depends_only_on_seed_name_and_number(write: Write) -> None:
    shard, numbers = write(counting(402)), np.arange(300)
    runs = [(seed, name) for seed in (1, 2) for name in ("math", "code")]
    first, *others = (samples(name, [shard], 4, seed).locate(numbers) for seed, name in runs)
    for other in others:
        assert first.window.tolist() != other.window.tolist()
        assert (first.start - 4 * first.window)[0] % 402 != (other.start - 4 * other.window)[0] % 402
    again = samples("math", [shard], 4, 1)
    for row in (0, 137, 299):
        assert again.locate(numbers[[row]]).start[0] == first.start[row]


def test_document_starts_come_from_the_index_and_not_from_a_token(write: Write) -> None:
    end = 7
    training = samples("math", [write([[1, end, 2], [3, 4], [], [end, 5, 6, 8]])], 8, 1)
    stream = [1, end, 2, 3, 4, end, 5, 6, 8]
    start = int(training.locate(np.array([0])).start[0])
    tokens, document_starts = training.read(0)
    assert tokens.tolist() == stream[start:] + stream[:start]
    assert document_starts.tolist() == sorted({0, *((first - start) % 9 for first in (0, 3, 5))})


def test_a_document_of_several_sequences_begins_once(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    builder = pytest.importorskip("megatron.core.datasets.indexed_dataset").IndexedDatasetBuilder(
        str(tmp_path / "theirs.bin"), dtype=np.int32
    )
    for document in ([[0, 1, 2], [3, 4]], [[5], [6, 7]]):
        for sentence in document:
            builder.add_item(torch.tensor(sentence))
        builder.end_document()
    builder.finalize(str(tmp_path / "theirs.idx"))
    training = samples("math", [IndexedDataset(tmp_path / "theirs")], 7, 1)
    tokens, document_starts = training.read(0)
    assert document_starts.tolist() == [place for place in range(8) if place == 0 or tokens[place] in (0, 5)]


@pytest.mark.parametrize(("tokens", "expected"), [(0, 0), (4, 0), (5, 1), (8, 2), (11, 2)])
def test_an_epoch_has_a_sample_for_every_whole_window(write: Write, tokens: int, expected: int) -> None:
    assert samples("math", [write(counting(tokens))], 4, 1).samples_per_epoch == expected  # a sample holds 5


def test_a_corpus_continues_at_its_position(write: Write) -> None:
    shards = [write(counting(40)), write(counting(30, first=40))]
    alone, both = samples("math", shards[:1], 4, 1), samples("math", shards, 4, 1)
    grown = CorpusSamples(stream(*shards), 4, 1, "math", epoch=2, position=7, epoch_stream=stream(*shards[:1]))
    expected = [alone.read(20 + place) for place in range(7, 10)]  # the rest of epoch 2, 10 samples of the old shard
    expected += [both.read(3 * 17 + place) for place in range(17)]  # epoch 3, of both
    assert [grown.read(number).tokens.tolist() for number in range(20)] == [one.tokens.tolist() for one in expected]


def test_passages_are_the_sample_document_by_document(write: Write) -> None:
    shards = [write([[1, 2, 3], [], [4]]), write([]), write([[5, 6, 7, 8, 9]])]
    passages = list(stream(*shards).passages(1, 11))  # 2 3 | 4 | 5 6 7 8 9 | 1 2 3
    assert [(passage.prefix, passage.document, passage.first, passage.end) for passage in passages] == [
        (shards[0].prefix, 0, 1, 3),
        (shards[0].prefix, 2, 0, 1),
        (shards[2].prefix, 0, 0, 5),
        (shards[0].prefix, 0, 0, 3),
    ]
    assert [passage.tokens.tolist() for passage in passages] == [[2, 3], [4], [5, 6, 7, 8, 9], [1, 2, 3]]


def test_a_token_beyond_the_vocabulary_names_shard_and_document(write: Write) -> None:
    good, bad = write(counting(6, 2)), write([[1, 2, 3], [], [VOCABULARY, 4]])
    training = samples("math", [good, bad], 12, 1)
    with pytest.raises(IndexedDatasetError, match="beyond the model's vocabulary") as refusal:
        training.read(0)
    assert f"{bad.prefix}.bin, document 2" in refusal.value.text()
    assert "1,000" in refusal.value.text()


def test_a_negative_token_is_beyond_the_vocabulary(tmp_path: Path) -> None:
    with IndexedWriter(tmp_path / "negative", np.dtype(np.int32)) as writer:
        writer.add_document([1, -2, 3])
    training = samples("math", [IndexedDataset(tmp_path / "negative")], 2, 1)
    with pytest.raises(IndexedDatasetError, match="beyond the model's vocabulary") as refusal:
        training.read(0)
    assert "-2" in refusal.value.text()


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(content=st.binary(min_size=48, max_size=48), number=st.integers(0, 20))
def test_a_sample_of_any_bytes_has_known_ids_or_is_refused(tmp_path: Path, content: bytes, number: int) -> None:
    with IndexedWriter(tmp_path / "hostile", np.dtype(np.int32)) as writer:
        writer.add_documents(np.zeros(12, np.int32), np.array([5, 0, 7]))
    (tmp_path / "hostile.bin").write_bytes(content)
    try:
        tokens, _ = samples("math", [IndexedDataset(tmp_path / "hostile")], 3, 1).read(number)
    except IndexedDatasetError as refusal:
        assert "document 0" in str(refusal.where) or "document 2" in str(refusal.where)
        return
    assert set(tokens.tolist()) <= {
        token for token in np.frombuffer(content, "<i4").tolist() if 0 <= token < VOCABULARY
    }
