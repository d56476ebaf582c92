"""What a run draws of each of its corpora until it ends, and whether a corpus was shuffled: `dsmath data blend`."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import sqrt
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from megatron_dsmath.data.indexed.dataset import IndexedDataset, Tokens
from megatron_dsmath.data.mixture.mixture_batches import Mixture
from megatron_dsmath.data.mixture.mixture_plan import MixturePlan
from megatron_dsmath.data.mixture.permutation import permute, random_words

MOST_COMPARISONS = 512
COMPARED_TOKENS = 256  # of a document, its first: a page or two of the file
BUCKETS = 4093  # for token ids; a prime, so that ids which differ by a power of two do not meet
# Of a shuffled corpus, at most one in exp(4.5^2 / 2) = 25,000 goes so far, whatever its documents are: a comparison
# would have come out with the other sign as likely, and so Hoeffding's inequality holds for their sum.
LARGEST_CHANCE_DEVIATION = 4.5
FEWEST_COMPARISONS = 21  # more than 4.5^2: fewer cannot reach it


class NeighbourLikeness(NamedTuple):
    """`excess`: how much more alike than strangers neighbours are, on a scale from 0 (no token shared) to 1 (equal).

    `deviations`: how many standard deviations of chance that amounts to.
    """

    excess: float
    deviations: float

    @property
    def is_beyond_chance(self) -> bool:
        """Whether the documents lie in an order that tells of their contents."""
        return self.deviations > LARGEST_CHANCE_DEVIATION


def neighbour_likeness(shards: Sequence[IndexedDataset], *label: object) -> NeighbourLikeness | None:
    """Compare documents of a corpus, its shards end to end, that are drawn by `label`; None where there are too few.

    Reads at most 1,536 documents, none of them twice, and of each at most 256 tokens.
    """
    *firsts, documents = accumulate((shard.document_count for shard in shards), initial=0)
    comparisons = min(MOST_COMPARISONS, documents // 4)
    if comparisons < FEWEST_COMPARISONS:
        return None

    def counts(document: int) -> npt.NDArray[np.int64]:
        place = bisect_right(firsts, document) - 1
        return _token_counts(shards[place].document(document - firsts[place]))

    # Couples of neighbours: the first half gives documents and their neighbours, the other half gives strangers.
    couples = permute(np.arange(2 * comparisons), documents // 2, random_words(*label, "neighbours"))
    differences = np.zeros(comparisons)
    for comparison, (first, other) in enumerate((2 * couples.reshape(2, comparisons)).T.tolist()):
        document = counts(first)
        differences[comparison] = _likeness(document, counts(first + 1)) - _likeness(document, counts(other))
    differences = differences.round(9)  # documents that are alike but for rounding are alike
    spread = sqrt(float((differences**2).sum()))
    return NeighbourLikeness(float(differences.mean()), float(differences.sum()) / spread if spread else 0.0)


def _token_counts(document: Tokens) -> npt.NDArray[np.int64]:
    """How often the first tokens of a document fall into each bucket: int64 [BUCKETS]."""
    counts: npt.NDArray[np.int64] = np.bincount(
        document[:COMPARED_TOKENS].astype(np.int64) % BUCKETS, minlength=BUCKETS
    )
    return counts


def _likeness(ours: npt.NDArray[np.int64], theirs: npt.NDArray[np.int64]) -> float:
    """Bhattacharyya's coefficient of the token frequencies of two documents: 0 with none shared, 1 with all equal."""
    size = sqrt(int(ours.sum()) * int(theirs.sum()))
    return float(np.sqrt(ours * theirs).sum()) / size if size else 0.0


@dataclass(frozen=True)
class PlannedCorpus:
    """A corpus at the end of its run; what is None is not known, or is none of a corpus that was removed.

    `largest_deviation_samples` counts from the first sample of the newest version. `neighbours_alike`: see
    `neighbours.NeighbourLikeness.excess`.
    """

    name: str
    share: float
    samples: int
    tokens: int
    epochs: float
    largest_deviation_samples: float | None
    neighbours_alike: float | None
    unshuffled: bool

    @property
    def warning(self) -> str | None:
        """What to do about a corpus whose documents were not mixed."""
        if not self.unshuffled:
            return None
        return (
            f"warning: corpus {self.name} is not shuffled: documents side by side are {self.neighbours_alike:.2f} more"
            " alike than others; mix them once: dsmath data tokenize --shuffle-seed N"
        )


def planned_corpora(plan: MixturePlan, newest: Mixture) -> list[PlannedCorpus]:
    """Every corpus of the `plan`, whose `newest` version is given opened; reads a few documents of each corpus."""
    version = newest.version
    deviations = version.blend.largest_deviations(version.end_sample - version.first_sample)
    largest = dict(zip(newest.names, deviations, strict=True))
    likeness = {
        name: neighbour_likeness(newest.shards(corpus), plan.seed, name) for corpus, name in enumerate(newest.names)
    }
    corpora = []
    for total in plan.totals(version.end_sample):
        alike = likeness.get(total.name)
        corpora.append(
            PlannedCorpus(
                **vars(total),
                largest_deviation_samples=largest.get(total.name),
                neighbours_alike=None if alike is None else round(alike.excess, 4),
                unshuffled=alike is not None and alike.is_beyond_chance,
            )
        )
    return corpora
