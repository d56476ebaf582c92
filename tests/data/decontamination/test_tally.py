from __future__ import annotations

from megatron_dsmath.data.decontamination.decontamination_report import LISTED, Dropped, Hits, Match, Tally

WORDS = "the sum of two numbers is ten what are they"
NUMBERS = r"1 2 \frac 3 4 x 5 y 6 7"


def match(ngram: str = WORDS, *, benchmark: str = "a", rows: int = 1, passage_units: int = 0) -> Match:
    units = len(ngram.split())
    return Match(benchmark, "question", 1, rows, ngram, units, max(units, passage_units), "in the document", "in it")


def dropped(*documents: list[Match]) -> list[Dropped]:
    return [Dropped("corpus", line, matches) for line, matches in enumerate(documents, 1)]


def tallied(*documents: list[Match], benchmark: str = "a") -> tuple[Hits, int]:
    tally = Tally()
    for document in dropped(*documents):
        tally.add(document)
    hits, looking_false = tally.result(["a", "b"], dropped(*documents))
    return hits[benchmark], looking_false


def signs(*documents: list[Match]) -> list[tuple[str, ...]]:
    return [frequent.false_hit_signs for frequent in tallied(*documents)[0].frequent_ngrams]


def test_a_document_counts_once_for_an_ngram_and_for_a_benchmark() -> None:
    hits, _ = tallied(
        [match(), match(passage_units=30), match(NUMBERS)], [match(passage_units=12)], [match(benchmark="b")]
    )
    assert hits.documents == 2
    assert [(frequent.match.ngram, frequent.documents) for frequent in hits.frequent_ngrams] == [
        (WORDS, 2),
        (NUMBERS, 1),
    ]
    assert hits.frequent_ngrams[0].longest_passage_units == 30
    assert (hits.frequent_ngrams[0].file, hits.frequent_ngrams[0].line) == ("corpus", 1)


def test_documents_are_classed_by_their_longest_passage() -> None:
    short = match("the sum of two numbers")
    lengths = [3, 10, 12, 13, 19, 20, 49, 50, 400]
    hits, _ = tallied([short], *([short, match(passage_units=units)] for units in lengths[1:]))
    assert hits.documents_by_longest_passage_units == {
        "3 to 9": 1,
        "10 to 12": 2,
        "13 to 19": 2,
        "20 to 49": 2,
        "50 or more": 2,
    }


def test_short_texts_are_listed_apart() -> None:
    hits, _ = tallied([match("what is it"), match()])
    assert [frequent.match.ngram for frequent in hits.frequent_short_texts] == ["what is it"]
    assert [frequent.match.ngram for frequent in hits.frequent_ngrams] == [WORDS]


def test_an_ngram_without_a_word_looks_false() -> None:
    assert signs([match(NUMBERS)]) == [("no word in it",)]
    assert signs([match("一 2 3 4 5 6 7 8 9 10")]) == signs([match(WORDS)]) == [()]


def test_an_ngram_of_many_questions_looks_false() -> None:
    assert signs([match(rows=3)]) == [("in 3 rows of the benchmark",)]
    assert signs([match(rows=2)]) == [()]


def test_a_short_passage_in_many_documents_looks_false() -> None:
    many = [[match(passage_units=19)] for _ in range(10)]
    assert signs(*many) == [("in 10 documents, never more than 19 units of the text",)]
    assert signs(*many[1:]) == [()]
    assert signs(*many, [match(passage_units=20)]) == [()]


def test_a_document_looks_false_when_each_of_its_matches_does() -> None:
    false, true = match(NUMBERS), match()
    documents = [false], [false, true], [true], [false, match(benchmark="b")]
    assert (tallied(*documents)[0].looking_false, tallied(*documents)[1]) == (2, 1)
    assert tallied(*documents, benchmark="b")[0].looking_false == 0


def test_the_most_frequent_are_listed_first_and_ties_by_name() -> None:
    ngrams = [f"{WORDS[:-4]}{letter}" for letter in "zyxwvutsrqponmlkjihgfedcba"]
    hits, _ = tallied(*([match(ngram)] for ngram in ngrams), [match(ngrams[0])])
    listed = [frequent.match.ngram for frequent in hits.frequent_ngrams]
    assert listed == [ngrams[0], *sorted(ngrams[1:])[: LISTED - 1]]


def test_a_benchmark_that_dropped_nothing_has_zeros() -> None:
    hits, looking_false = tallied()
    assert (hits.documents, hits.looking_false, looking_false, hits.frequent_ngrams) == (0, 0, 0, ())
