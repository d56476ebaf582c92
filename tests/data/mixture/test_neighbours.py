"""Sorted corpora are distinguished from shuffled ones, with synthetic documents and with real texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest

from megatron_dsmath.data.indexed.dataset import IndexedDataset, IndexedWriter, Tokens
from megatron_dsmath.data.mixture.planned_corpora import (
    COMPARED_TOKENS,
    FEWEST_COMPARISONS,
    MOST_COMPARISONS,
    NeighbourSimilarity,
    neighbour_similarity,
)
from megatron_dsmath.data.tokenizing.tokenizer import load_tokenizer

SEEDS = range(5)


def write(prefix: Path, documents: Sequence[Sequence[int]]) -> IndexedDataset:
    with IndexedWriter(prefix, np.dtype(np.int32)) as writer:
        for document in documents:
            writer.add_document(document)
    return IndexedDataset(prefix)


def shuffled(documents: Sequence[Sequence[int]], seed: int) -> list[Sequence[int]]:
    return [documents[index] for index in np.random.default_rng(seed).permutation(len(documents))]


def measured(shards: Sequence[IndexedDataset], seed: int = 0) -> NeighbourSimilarity:
    similarity = neighbour_similarity(shards, seed)
    assert similarity is not None
    return similarity


def documents_of(source: int, count: int, shared_share: float = 0.7) -> list[list[int]]:
    """Documents of one source: most words are shared with other sources, the rest are its own; lengths vary."""
    generator = np.random.default_rng(source)
    documents = []
    for length in generator.integers(5, 400, count):
        shared = generator.zipf(1.3, length) % 1000
        own = 1000 * (1 + source) + generator.zipf(1.3, length) % 1000
        documents.append(np.where(generator.random(length) < shared_share, shared, own).tolist())
    return documents


@pytest.mark.parametrize("seed", SEEDS)
def test_a_corpus_sorted_by_source_is_found_and_the_same_shuffled_is_not(tmp_path: Path, seed: int) -> None:
    documents = documents_of(0, 900) + documents_of(1, 900)
    in_order = measured([write(tmp_path / "sorted", documents)], seed)
    mixed = measured([write(tmp_path / "mixed", shuffled(documents, seed))], seed)
    assert in_order.is_beyond_chance
    assert in_order.excess > 0.05
    assert not mixed.is_beyond_chance
    assert abs(mixed.excess) < 0.05


def test_one_shard_per_source_is_found_like_one_sorted_file(tmp_path: Path) -> None:
    shards = [write(tmp_path / str(source), documents_of(source, 500)) for source in range(4)]
    assert measured(shards).is_beyond_chance
    mixed = shuffled([document for source in range(4) for document in documents_of(source, 500)], 0)
    assert not measured([write(tmp_path / f"m{part}", mixed[part::4]) for part in range(4)]).is_beyond_chance


def test_repeated_neighbours_are_found(tmp_path: Path) -> None:
    twice = [document for document in documents_of(0, 400) for _ in range(2)]
    assert measured([write(tmp_path / "twice", twice)]).is_beyond_chance


def test_a_tenth_of_another_language_at_the_end_is_found(tmp_path: Path) -> None:
    documents = documents_of(0, 1800) + documents_of(1, 200, shared_share=0.0)
    assert measured([write(tmp_path / "tail", documents)]).is_beyond_chance


def test_deviations_of_shuffled_corpora_are_normal(tmp_path: Path) -> None:
    """Two thirds of 200 shuffled corpora are within one standard deviation, and none is far away.

    Bounds: 68% +- 4 standard errors of 3.3%; the largest of 200 normal deviates is below 4 with 99%.
    """
    documents = documents_of(0, 150) + documents_of(1, 150)
    deviations = [measured([write(tmp_path / "c", shuffled(documents, seed))], seed).deviations for seed in range(200)]
    expected = NormalDist().cdf(1) - NormalDist().cdf(-1)
    assert np.mean(np.abs(deviations) < 1) == pytest.approx(expected, abs=4 * 0.033)
    assert max(map(abs, deviations)) < 4


@pytest.mark.parametrize("count", [0, 1, 3, 4 * FEWEST_COMPARISONS - 1])
def test_a_tiny_corpus_has_no_result(tmp_path: Path, count: int) -> None:
    dataset = write(tmp_path / "tiny", [[1, 2, 3]] * (count // 2) + [[7, 8, 9]] * (count - count // 2))
    assert neighbour_similarity([dataset], 0) is None


def test_the_smallest_compared_corpus_can_be_found_sorted(tmp_path: Path) -> None:
    count = 2 * FEWEST_COMPARISONS
    assert measured([write(tmp_path / "small", [[1]] * count + [[2]] * count)]).deviations > 3


@pytest.mark.parametrize("document", [[0] * 50, [5, 6, 7], []], ids=["zeros", "equal", "empty"])
def test_equal_documents_have_no_order(tmp_path: Path, document: list[int]) -> None:
    documents = [document * (1 + place // 300) for place in range(1200)]  # equal frequencies, sorted by length
    assert measured([write(tmp_path / "equal", documents)]) == (0.0, 0.0)


def test_ids_beyond_every_vocabulary_are_compared(tmp_path: Path) -> None:
    similarity = measured([write(tmp_path / "wild", [[-(2**31), 2**31 - 1, place] for place in range(400)])])
    assert not similarity.is_beyond_chance


def test_only_the_seed_determines_which_documents_are_compared(tmp_path: Path) -> None:
    dataset = write(tmp_path / "corpus", documents_of(0, 600))
    assert measured([dataset], 3) == measured([dataset], 3)
    assert measured([dataset], 3) != measured([dataset], 4)


def test_no_document_is_read_twice_or_beyond_its_first_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = write(tmp_path / "corpus", [[place % 1000] * 300 for place in range(5_000)])
    read: list[int] = []
    of_dataset = IndexedDataset.document

    def document(self: IndexedDataset, number: int) -> Tokens:
        read.append(number)
        tokens: Tokens = of_dataset(self, number).copy()
        tokens[COMPARED_TOKENS:] = -1  # must not be compared
        return tokens

    expected = measured([dataset])
    monkeypatch.setattr(IndexedDataset, "document", document)
    assert measured([dataset]) == expected
    assert len(read) == len(set(read)) == 3 * MOST_COMPARISONS


def test_real_texts_sorted_by_source_are_found(shared_data: Path, tmp_path: Path) -> None:
    """Pages of the web, Chinese encyclopedia, exercises and parts of articles, in several pairs."""
    tokenizer = load_tokenizer(shared_data / "tokenizer" / "deepseek_llm")

    def encoded(name: str, count: int, *fields: str) -> list[list[int]]:
        with (shared_data / name).open(encoding="utf-8") as file:
            rows = [json.loads(line) for _, line in zip(range(count), file, strict=False)]
        return [tokenizer.encode("\n".join(row[field] for field in fields)[:1500]) for row in rows]

    sources = {
        "web": encoded("pretrain/c4_en_sample.jsonl", 300, "text"),
        "chinese": encoded("pretrain/zh_wiki_cmrc2018.jsonl", 300, "text"),
        "grade school": encoded("sft/gsm8k_train.jsonl", 300, "question", "answer"),
        "competition": encoded("eval/math_test.jsonl", 300, "problem", "solution"),
    }
    for first, second in (("web", "chinese"), ("grade school", "competition"), ("web", "competition")):
        documents = sources[first] + sources[second]
        assert measured([write(tmp_path / "sorted", documents)]).is_beyond_chance, (first, second)
        for seed in SEEDS:
            mixed = write(tmp_path / "mixed", shuffled(documents, seed))
            assert not measured([mixed], seed).is_beyond_chance, (first, second, seed)
    with (shared_data / "pretrain" / "arxiv_sample.jsonl").open(encoding="utf-8") as file:
        papers = [json.loads(line)["text"] for line in file]
    parts = [tokenizer.encode(paper[start : start + 1500]) for paper in papers for start in range(0, 30_000, 1500)]
    assert measured([write(tmp_path / "papers", parts)]).is_beyond_chance
    assert not measured([write(tmp_path / "mixed", shuffled(parts, 0))]).is_beyond_chance
