"""What a run draws of each of its corpora until it ends, and whether a corpus was shuffled: `dsmath data blend`."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_dsmath.data.mixture.mixture import Mixture
from megatron_dsmath.data.mixture.neighbours import neighbour_likeness
from megatron_dsmath.data.mixture.plan import Plan


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


def planned_corpora(plan: Plan, newest: Mixture) -> list[PlannedCorpus]:
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
