"""Reports what a run will draw from each corpus, and whether the corpus is shuffled: `dsmath data blend`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.indexed.dataset import IndexedDataset
from megatron_dsmath.data.mixture.mixture_batches import Mixture
from megatron_dsmath.data.mixture.mixture_plan import CorpusTotal, MixturePlan
from megatron_dsmath.data.mixture.permutation import permute, random_words

MOST_COMPARISONS = 512
COMPARED_TOKENS = 256  # first tokens of a document: one or two pages of the file
BUCKETS = 4093  # for token ids; a prime, so that ids which differ by a power of two do not share one
# At most one in exp(4.5^2 / 2) = 25,000 shuffled corpora exceeds this, whatever its documents are: each comparison has
# either sign with equal probability, so Hoeffding's inequality bounds the sum.
LARGEST_CHANCE_DEVIATION = 4.5
FEWEST_COMPARISONS = 21  # more than 4.5^2; fewer cannot exceed it


@dataclass(frozen=True)
class PlannedCorpus(CorpusTotal):
    """A corpus at the end of the run.

    `largest_deviation_samples` counts from the first sample of the newest version and is None for a removed corpus.
    `neighbours_alike` is `NeighbourSimilarity.excess`, or None if it is not known.
    """

    largest_deviation_samples: float | None
    neighbours_alike: float | None
    unshuffled: bool

    @property
    def warning(self) -> str | None:
        """What to do about a corpus that is not shuffled, or None."""
        if not self.unshuffled:
            return None
        return (
            f"warning: corpus {self.name} is not shuffled: the similarity of neighbouring documents is"
            f" {self.neighbours_alike:.2f} higher than of others; shuffle it: dsmath data tokenize --shuffle-seed N"
        )


def planned_corpora(plan: MixturePlan, newest: Mixture) -> list[PlannedCorpus]:
    """Return every corpus of the `plan`; reads a few documents of each corpus of `newest`, its newest version."""
    version = newest.version
    deviations = version.blend.largest_deviations(version.end_sample - version.first_sample)
    largest = dict(zip(newest.names, deviations, strict=True))
    similarities = {
        name: neighbour_similarity(newest.training_shards(index), plan.seed, name)
        for index, name in enumerate(newest.names)
    }
    corpora = []
    for total in plan.totals(version.end_sample):
        similarity = similarities.get(total.name)
        corpora.append(
            PlannedCorpus(
                **vars(total),
                largest_deviation_samples=largest.get(total.name),
                neighbours_alike=None if similarity is None else round(similarity.excess, 4),
                unshuffled=similarity is not None and similarity.is_beyond_chance,
            )
        )
    return corpora


class PhaseCorpus(NamedTuple):
    """What a phase is planned to draw from a corpus. `epochs` counts from the first step of the run to its end."""

    phase: str
    name: str
    share: float
    samples: int
    tokens: int
    epochs: float
    largest_deviation_samples: float


def phase_corpora(plan: MixturePlan, names: Sequence[str]) -> Iterator[PhaseCorpus]:
    """Yield the corpora of the last phases of the `plan`, which have these names."""
    for phase, version in zip(names, plan.versions[-len(names) :], strict=True):
        samples = version.end_sample - version.first_sample
        counts, deviations = version.blend.counts(np.array([samples]))[0], version.blend.largest_deviations(samples)
        totals = {total.name: total for total in plan.totals(version.end_sample - 1)}
        for name, share, count, deviation in zip(
            version.blend.names, version.blend.shares, counts.tolist(), deviations, strict=True
        ):
            tokens = count * version.sequence_length
            yield PhaseCorpus(phase, name, float(share), count, tokens, totals[name].epochs, deviation)


class NeighbourSimilarity(NamedTuple):
    """`excess`: similarity of neighbours minus that of random pairs, each from 0 (no shared token) to 1 (equal).

    `deviations`: the excess in standard deviations under a random order.
    """

    excess: float
    deviations: float

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the order of the documents depends on their content."""
        return self.deviations > LARGEST_CHANCE_DEVIATION


def neighbour_similarity(shards: Sequence[IndexedDataset], *label: object) -> NeighbourSimilarity | None:
    """Compare documents of a corpus, drawn by `label`, with neighbours and others; None if there are too few documents.

    Reads the first 256 tokens of at most 1,536 different documents.
    """
    *firsts, documents = accumulate((shard.document_count for shard in shards), initial=0)
    comparisons = min(MOST_COMPARISONS, documents // 4)
    if comparisons < FEWEST_COMPARISONS:
        return None

    def token_counts(document: int) -> npt.NDArray[np.int64]:
        shard = bisect_right(firsts, document) - 1
        tokens = shards[shard].document(document - firsts[shard])[:COMPARED_TOKENS].astype(np.int64)
        counts: npt.NDArray[np.int64] = np.bincount(tokens % BUCKETS, minlength=BUCKETS)
        return counts

    # Pairs of neighbours: the first half gives documents and their neighbours, the second half other documents.
    pairs = permute(np.arange(2 * comparisons), documents // 2, random_words(*label, "neighbours"))
    differences = np.zeros(comparisons)
    for comparison, (first, other) in enumerate((2 * pairs.reshape(2, comparisons)).T.tolist()):
        counts, next_counts, other_counts = (token_counts(document) for document in (first, first + 1, other))
        differences[comparison] = _similarity(counts, next_counts) - _similarity(counts, other_counts)
    differences = differences.round(9)  # ignore rounding between equal similarities
    spread = sqrt(float((differences**2).sum()))
    return NeighbourSimilarity(float(differences.mean()), float(differences.sum()) / spread if spread else 0.0)


def _similarity(first: npt.NDArray[np.int64], second: npt.NDArray[np.int64]) -> float:
    """Return Bhattacharyya's coefficient of two token counts: 0 without shared tokens, 1 for equal frequencies."""
    size = sqrt(int(first.sum()) * int(second.sum()))
    return float(np.sqrt(first * second).sum()) / size if size else 0.0
