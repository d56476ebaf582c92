from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from megatron_dsmath.data.decontamination.ngrams import BenchmarkNgrams, Passage
from megatron_dsmath.data.decontamination.text_units import split_units

QUESTION = "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron"  # 15 units
WORDS = QUESTION.split()


def ngrams_of(
    *texts: str, rows: Sequence[int] = (), benchmarks: Sequence[int] = (), short: bool = True
) -> BenchmarkNgrams:
    numbers = np.arange(len(texts))
    return BenchmarkNgrams(
        split_units(texts),
        np.array(rows) if rows else numbers,
        np.array(benchmarks) if benchmarks else np.zeros_like(numbers),
        np.full(len(texts), short),
    )


def found(ngrams: BenchmarkNgrams, *texts: str) -> list[Passage]:
    return list(ngrams.find_passages(split_units(texts)))


@pytest.mark.parametrize("first", range(6))
def test_ten_units_in_a_row_are_found_and_nine_are_not(first: int) -> None:
    ngrams = ngrams_of(QUESTION)
    ten, nine = (" ".join(WORDS[first : first + count]) for count in (10, 9))
    for around in ("{}", "x {}", "{} x", "x {} x"):
        assert [passage.unit_count for passage in found(ngrams, around.format(ten))] == [10]
        assert found(ngrams, around.format(nine)) == []


def test_a_passage_extends_as_long_as_both_texts_agree() -> None:
    ngrams = ngrams_of("before", QUESTION, "after")
    assert found(ngrams, f"x {QUESTION} after") == [Passage(0, 1, 15, 0, 10, found(ngrams, QUESTION)[0].entry)]
    assert [p[:3] for p in found(ngrams, "other", " ".join(WORDS[2:14]), QUESTION)] == [(1, 1, 12), (2, 13, 15)]


def test_passages_of_different_texts_are_separate() -> None:
    other = " ".join(f"other{letter}" for letter in "abcdefghijkl")
    passages = found(ngrams_of(QUESTION, other), f"{other} and {QUESTION}")
    assert [(passage.start, passage.unit_count) for passage in passages] == [(0, 12), (13, 15)]


def test_no_ngram_runs_from_one_text_into_the_next() -> None:
    first, second = " ".join(WORDS[:8]), " ".join(WORDS[8:])
    assert found(ngrams_of(QUESTION), first, second) == []
    assert found(ngrams_of(first, second, short=False), QUESTION) == []


@pytest.mark.parametrize("count", range(3, 10))
def test_a_short_text_is_found_as_a_whole_only(count: int) -> None:
    ngrams = ngrams_of(" ".join(WORDS[:count]))
    assert [p[:5] for p in found(ngrams, f"x {QUESTION}")] == [(0, 1, count, 0, count)]
    assert found(ngrams, " ".join(WORDS[: count - 1])) == []
    assert found(ngrams, " ".join(WORDS[1:])) == []
    assert found(ngrams_of(" ".join(WORDS[:count]), short=False), QUESTION) == []


@pytest.mark.parametrize("count", [0, 1, 2])
def test_texts_below_three_units_are_not_compared(count: int) -> None:
    assert found(ngrams_of(" ".join(WORDS[:count])), QUESTION) == []


def test_each_benchmark_with_the_ngram_is_named() -> None:
    ngrams = ngrams_of(QUESTION, "x " + QUESTION, QUESTION, rows=[1, 2, 7], benchmarks=[0, 0, 2])
    passages = found(ngrams, QUESTION)
    assert [passage.benchmark for passage in passages] == [0, 2]
    assert [ngrams.tables[10].row_counts[passage.entry] for passage in passages] == [2, 1]


def test_an_ngram_twice_in_one_row_counts_as_one_row() -> None:
    ngrams = ngrams_of(f"{QUESTION} {QUESTION}", QUESTION, rows=[4, 4], benchmarks=[0, 0])
    [passage] = found(ngrams, QUESTION)
    assert ngrams.tables[10].row_counts[passage.entry] == 1


@pytest.mark.parametrize("question", [QUESTION, " ".join(WORDS[:4])])
def test_equal_hashes_of_different_words_do_not_match(question: str) -> None:
    benchmark = split_units([question])
    other = split_units([" ".join(word[::-1] for word in question.split())])
    forged = other._replace(hashes=benchmark.hashes)
    ngrams = BenchmarkNgrams(benchmark, np.array([1]), np.array([0]), np.array([True]))
    assert list(ngrams.find_passages(benchmark))
    assert list(ngrams.find_passages(forged)) == []


def test_every_ngram_of_many_is_found_and_no_other() -> None:
    draw = np.random.default_rng(7)
    texts = [" ".join(map(str, draw.integers(0, 50, count))) for count in draw.integers(0, 60, 300)]
    ngrams = ngrams_of(*texts[:150])
    theirs = {gram for text in texts[:150] for gram in grams(text)}
    hit = {passage.text for passage in ngrams.find_passages(split_units(texts)) if passage.length == 10}
    assert hit == {number for number, text in enumerate(texts) if any(gram in theirs for gram in grams(text))}
    assert ngrams.tables[10].hashes.size == len(theirs)


def grams(text: str) -> list[tuple[str, ...]]:
    words = text.split()
    return [tuple(words[first : first + 10]) for first in range(len(words) - 9)]
