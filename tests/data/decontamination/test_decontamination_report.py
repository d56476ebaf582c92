from __future__ import annotations

from megatron_dsmath.data.decontamination.decontamination_report import LISTED, DropCounter
from megatron_dsmath.data.decontamination.screening import DroppedDocument, Match

WORDS = "the sum of two numbers is ten what are they"
NUMBERS = r"1 2 \frac 3 4 x 5 y 6 7"


def match(ngram: str = WORDS, *, benchmark: str = "a", passage_units: int = 0) -> Match:
    units = len(ngram.split())
    return Match(benchmark, "question", 1, 1, ngram, units, max(units, passage_units), "in the document", "in it")


def count(*documents: list[Match]) -> DropCounter:
    counter = DropCounter()
    for line, matches in enumerate(documents, 1):
        counter.add(DroppedDocument("corpus", line, matches))
    return counter


def frequent_ngrams(counter: DropCounter) -> list[str]:
    return [frequent.match.ngram for frequent in counter.most_frequent("a", short=False)]


def test_a_document_counts_once_per_ngram_and_per_benchmark() -> None:
    counts = count(
        [match(), match(passage_units=30), match(NUMBERS)], [match(passage_units=12)], [match(benchmark="b")]
    )
    assert counts.passages["a"].total() == 2
    first, second = counts.most_frequent("a", short=False)
    assert [(one.match.ngram, one.documents) for one in (first, second)] == [(WORDS, 2), (NUMBERS, 1)]
    assert first.longest_passage_units == 30
    assert (first.file, first.line, first.match) == ("corpus", 1, match())


def test_documents_are_classed_by_their_longest_passage() -> None:
    short = match("the sum of two numbers")
    lengths = [3, 10, 12, 13, 19, 20, 49, 50, 400]
    counts = count([short], *([short, match(passage_units=units)] for units in lengths[1:]))
    assert counts.passages["a"] == {
        "3 to 9": 1,
        "10 to 12": 2,
        "13 to 19": 2,
        "20 to 49": 2,
        "50 or more": 2,
    }


def test_short_texts_are_listed_separately() -> None:
    counts = count([match("what is it"), match()])
    assert [frequent.match.ngram for frequent in counts.most_frequent("a", short=True)] == ["what is it"]
    assert frequent_ngrams(counts) == [WORDS]


def test_the_most_frequent_are_listed_first_and_ties_by_name() -> None:
    ngrams = [f"{WORDS[:-4]}{letter}" for letter in "zyxwvutsrqponmlkjihgfedcba"]
    counts = count(*([match(ngram)] for ngram in ngrams), [match(ngrams[0])])
    assert frequent_ngrams(counts) == [ngrams[0], *sorted(ngrams[1:])[: LISTED - 1]]


def test_a_benchmark_that_dropped_nothing_has_zeros() -> None:
    counts = count()
    assert (counts.passages["a"].total(), frequent_ngrams(counts)) == (0, [])
